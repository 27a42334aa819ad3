"""The table of grades, files for learning platforms, names of files, and which solutions look alike."""

from labkit.grading import platforms
from labkit.grading.records import file_name, table
from labkit.grading.similar import pairs


def record(student: str, lab: str, score: float, **more) -> dict:
    exercise = {"name": "stamp", "grade_id": "check-stamp", "points": score, "max_points": 10.0, "message": "m"}
    made = {"student": student, "id": "", "lab": lab, "score": score, "max_score": 10.0, "status": "ok", "late": ""}
    return made | {"exercises": [exercise | {"status": "ok"}], "solutions": {}} | more


def test_canvas_and_moodle_get_their_columns():
    class_ = [record("ann", "02_badnets", 7.5, id="101"), record("ann", "05_strip", 3, id="101")]
    class_.append(record("=bob", "05_strip", 1))
    rows = [platforms.slim(one) for one in class_]
    lines = platforms.canvas(rows).decode().splitlines()
    assert lines[0] == "Student,ID,SIS User ID,SIS Login ID,Section,02_badnets,05_strip"
    assert lines[1].split(",")[5:] == ["10", "10"] and lines[1].strip().startswith("Points Possible")
    assert lines[2:] == ["ann,101,,,,7.5,3", "'=bob,,,'=bob,,,1"]
    lines = platforms.moodle(rows[:1]).decode().splitlines()
    assert lines == [",".join(platforms.MOODLE), "Participant 101,ann,7.50,10.00,stamp: 7.5"]


def test_exercises_of_several_labs_share_one_table():
    lines = table([record("ann", "02_badnets", 7.5), record("ann", "05_strip", 3)]).decode().splitlines()
    assert lines == [
        "student,lab,score,max_score,status,late,stamp",
        "ann,02_badnets,7.5,10,ok,,7.5",
        "ann,05_strip,3,10,ok,,3",
    ]


def test_names_of_students_are_names_of_files():
    names = ["ann", "Ötzi <b>", "../x", "..", "a/b", "con:", "", "\udce9"]
    assert len({file_name(name) for name in names}) == len(names)
    for name in names:
        assert file_name(name) and not set("/\\<>:.") & set(file_name(name))


# --- copies -----------------------------------------------------------------------------------------------------------

OWN = """def f(x):
    total = 0
    for value in x.flatten().tolist():
        total += {0}(value) * {1}
    return total / {2}
"""
ODD = """def f(x):
    biggest = max(map(float, x.view(-1)))
    while biggest > 9.5:
        biggest = biggest / 7 - x.shape[0] % 3
    return [biggest] * 4
"""


def test_a_copy_is_found_though_it_is_renamed_and_commented():
    class_ = {f"s{i}": {"f": OWN.format("abs", i, i + 1)} for i in range(20)}
    renamed = ODD.replace("biggest", "q").replace("x", "images").replace("maimages", "max")
    class_ |= {"ann": {"f": ODD}, "bob": {"f": "# mine\n" + renamed}}
    (found,) = pairs(class_)
    assert (found.one, found.other, found.exercises) == ("ann", "bob", ("f",)) and found.share == 1
    assert pairs({"ann": {"f": "def f(x):\n  return"}, "bob": {"f": "def f(x):\n  return"}}) == []
    assert pairs({"ann": {"f": "no ( python"}, "bob": {"f": "'''"}}) == []


def test_those_who_share_most_come_first():
    long = ODD + ODD.replace("def f", "def g").replace("biggest", "least").replace("9.5", "0.1 + x.mean()")
    class_ = {f"s{i}": {"f": OWN.format("abs", i, i + 1)} for i in range(20)}
    class_ |= {"ann": {"f": ODD}, "bob": {"f": ODD}, "zoe": {"h": long}, "yan": {"h": long}}
    first, second = pairs(class_)
    assert (first.one, second.one) == ("yan", "ann") and first.shared > second.shared > 30

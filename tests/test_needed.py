"""Which statements a solution needs: found by name, through helpers, and no more than that."""

from labkit.grading.needed import binds, pick, statements, uses

GIVEN = """import math
import torch, copy
from labkit import checks, load
data = load("signs")
K = len(data.classes)
images = data.train.images
"""


def needs(code: str, *cells: str) -> list[str]:
    return pick([code], [statements([GIVEN]), statements(cells)])


def test_imports_come_one_name_at_a_time():
    assert needs("def f(x):\n    return torch.exp(x)") == ["import torch"]
    assert needs("def f():\n    return checks") == ["from labkit import checks"]


def test_an_argument_is_no_global():
    assert needs("def f(images, data):\n    return [data for K in images]") == []
    assert needs("class A:\n    def f(self, K):\n        return K") == []


def test_names_are_followed_and_keep_their_order():
    wanted = ["from labkit import load", "data = load('signs')", "K = len(data.classes)"]
    assert needs("def f():\n    return K") == wanted
    helper = "LIMIT = math.pi\ndef helper(x):\n    return x < LIMIT"
    assert needs("f = lambda x: helper(x)", helper)[:2] == ["import math", "LIMIT = math.pi"]


def test_changes_of_an_object_belong_to_it():
    cell = "table = {}\ntable[1] = 2\nfor i in range(3):\n    table[i] = i\nrow = []\nrow.append(1)\nprint(row)"
    assert len(needs("def f():\n    return table", cell)) == 3
    assert len(needs("def f():\n    return row", cell)) == 2


def test_a_students_own_cell_comes_before_a_given_one():
    code = ["def f():\n    return K"]
    assert pick(code, [statements([GIVEN]), statements(["K = 3"])], first=(1, 0)) == ["K = 3"]


def test_what_is_no_python_needs_and_offers_nothing():
    for text in ("def f(:", "\0", "(" * 5000):
        assert statements([text]) == [] and uses(text) == set()
    assert needs("def f(x):\n    return helper(x)", "def helper(:", "def helper(x):\n    return x") != []


def test_an_import_of_everything_always_comes():
    assert needs("x = 1", "from math import *") == ["from math import *"]


def test_binding_is_seen_in_every_form():
    import ast

    for text in ("a: int = 1", "a += 1", "with x as a: pass", "def a(): pass", "class a: pass", "import a", "(a := 1)"):
        assert "a" in binds(ast.parse(text).body[0], text), text

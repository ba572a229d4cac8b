"""The texts that runs are trained on, made of what Debian installs; none is committed.

bible: the King James Bible, a verse a line. mixed: prose (its beginning), code (Python's own
modules) and sums (generated), in turns of 4096 bytes. `etref train` holds out the last twentieth of
a text; mixed ends with what the three kinds, each a text of its own, hold out, and so a model of
mixed has read nothing of what it is asked about prose, code or sums.
"""

import glob
import hashlib
import os
import random
import re
import subprocess

BIBLE_BYTES = 4137850
KIND_BYTES = 1380000
TURN = 4096
KINDS = ("prose", "code", "sums")


class Missing(Exception):
    """What a text is made of is not installed."""


def bible():
    try:
        said = subprocess.run(["bible", "-f", "Ge1:1-Rev22:21"], stdout=subprocess.PIPE, check=True)
    except (OSError, subprocess.CalledProcessError) as problem:
        raise Missing("no program 'bible' here: apt install bible-kjv") from problem
    text = re.sub(rb"(?m)^[^ ]* ", b"", said.stdout)  # the verse's number
    if len(text) != BIBLE_BYTES:
        raise Missing(f"'bible -f Ge1:1-Rev22:21' gives {len(text)} bytes without the verses' "
                      f"numbers, {BIBLE_BYTES} are expected: is it Debian's bible-kjv?")
    return text


def prose():
    return bible()[:KIND_BYTES]


def code():
    """The modules of Debian's python3, by name, as far as they are wanted."""
    text = b""
    for path in sorted(glob.glob("/usr/lib/python3.*/*.py")):
        with open(path, "rb") as module:
            text += module.read()
    if len(text) < KIND_BYTES:
        raise Missing("no modules under /usr/lib/python3.*: apt install libpython3-stdlib")
    return text[:KIND_BYTES]


NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Frank", "Grace", "Henry", "Iris", "Jonas")
THINGS = ("apples", "books", "coins", "eggs", "letters", "pears", "stones", "tickets")
SUMS = (
    ("{a} has {x} {t}. {b} gives {a} {y} more. How many {t} does {a} have?",
     lambda x, y: x + y, "{x} + {y} = {z}"),
    ("{a} has {x} {t} and gives {b} {y} of them. How many are left?",
     lambda x, y: x - y, "{x} - {y} = {z}"),
    ("{a} buys {y} boxes of {x} {t}. How many {t} are that?",
     lambda x, y: x * y, "{x} * {y} = {z}"),
    ("{a} and {b} have {x} {t} each. They lose {y}. How many {t} do they have together?",
     lambda x, y: 2 * x - y, "2 * {x} = {x2}, {x2} - {y} = {z}"),
)


def sums():
    """Small sums in words with their answers, drawn from a few forms."""
    draw = random.Random(1).random
    lines, size = [], 0
    while size < KIND_BYTES:
        form, result, working = SUMS[int(draw() * len(SUMS))]
        x = 12 + int(draw() * 88)
        y = 2 + int(draw() * 10)
        a = int(draw() * len(NAMES))
        b = (a + 1 + int(draw() * (len(NAMES) - 1))) % len(NAMES)
        given = {"a": NAMES[a], "b": NAMES[b], "t": THINGS[int(draw() * len(THINGS))], "x": x,
                 "x2": 2 * x, "y": y, "z": result(x, y)}
        lines.append(f"Question: {form}\nAnswer: {working}. #### {{z}}\n\n".format(**given))
        size += len(lines[-1])
    return "".join(lines).encode()[:KIND_BYTES]


def in_turns(parts):
    """A piece of each part, the next piece of each, and so on."""
    return b"".join(part[at:at + TURN] for at in range(0, max(map(len, parts)), TURN)
                    for part in parts)


def mixed():
    kinds = [MAKERS[kind]() for kind in KINDS]
    kept = KIND_BYTES - KIND_BYTES // 20
    return in_turns([kind[:kept] for kind in kinds]) + in_turns([kind[kept:] for kind in kinds])


MAKERS = {"bible": bible, "prose": prose, "code": code, "sums": sums, "mixed": mixed}


def make(name, folder):
    """The file of a text, made if it is not there yet, and its sha256."""
    path = os.path.join(folder, name + ".txt")
    if not os.path.exists(path):
        os.makedirs(folder, exist_ok=True)
        with open(path + ".part", "wb") as out:
            out.write(MAKERS[name]())
        os.replace(path + ".part", path)
    with open(path, "rb") as text:
        return path, hashlib.sha256(text.read()).hexdigest()

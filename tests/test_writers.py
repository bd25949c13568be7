"""Only `acdc.output_folder` writes files, and it writes them whole or not at all."""

import ast
import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from acdc.discovery.journal import Journal
from acdc.errors import AcdcError
from acdc.grid.folder import grid_folder
from acdc.output_folder import output_file, output_folder, remove, remove_parts, write_file

ROOT = Path(__file__).parents[1]
WRITES = {"write_text", "write_bytes", "save_file", "save_pretrained", "save_model", "save_to_disk", "to_csv", "tofile",
          "to_parquet", "imsave", "write_html", "copyfile", "copyfileobj", "copy2", "copytree", "touch",
          "NamedTemporaryFile", "TemporaryFile", "mkstemp", "symlink_to", "hardlink_to", "truncate"}
OF_MODULES = {("np", "save"), ("np", "savez"), ("np", "savez_compressed"), ("np", "savetxt"), ("torch", "save"),
              ("json", "dump"), ("pickle", "dump"), ("shutil", "copy"), ("shutil", "move"), ("os", "replace"),
              ("os", "rename"), ("os", "open"), ("os", "write")}
ALLOWED = {  # besides output_folder: which module does what, and why
    "acdc/discovery/journal.py": {"open", "truncate"},  # appends, and drops what was half-written
    "acdc/packaged.py": {"open", "copyfileobj", "save_pretrained"},  # a folder of the cache that is renamed when whole
    "acdc/machine.py": {"write_text"},  # to /proc, which resets a counter
    "acdc/cli.py": {"os.open"},  # /dev/null
    "benchmarks/compiled/generate.py": {"write_text", "write_bytes"},  # imports nothing of acdc
    "benchmarks/peers/side.py": {"write_text", "save_pretrained"},  # these, into a folder of their own that is deleted
    "benchmarks/peers/scores.py": {"save_pretrained"},
    "benchmarks/peers/sparse_coders.py": {"save_file", "save_pretrained", "write_text"},
    "benchmarks/peers/circuit_tracer_page.py": {"write_text", "copytree"},
    "benchmarks/peers/lens_files.py": {"save_pretrained", "save_file"},
    "benchmarks/peers/lens_files_side.py": {"torch.save", "save_file"},
    "benchmarks/peers/eap_ig_side.py": {"write_text"},
    "benchmarks/peers/auto_circuit_side.py": {"write_text"},
    "benchmarks/peers/sparse_coders_side.py": {"save_file", "save_model", "save_to_disk"},
    "benchmarks/trained/digits.py": {"save_pretrained"},
    "benchmarks/fault_jobs.py": {"save_pretrained", "os.open"},
    "benchmarks/faults.py": {"open", "shutil.copy", "copytree"},
}


def writers(source: str) -> set[str]:
    """The calls in a module that write a file, whatever it is."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        name = getattr(function, "attr", getattr(function, "id", ""))
        given = [*node.args, *(keyword.value for keyword in node.keywords if keyword.arg == "mode")]
        modes = {leaf.value for argument in given for leaf in ast.walk(argument)
                 if isinstance(leaf, ast.Constant) and isinstance(leaf.value, str) and len(leaf.value) < 4}
        owner = getattr(getattr(function, "value", None), "id", "")
        if (owner, name) in OF_MODULES:
            found.add(f"{owner}.{name}")
        elif name in WRITES or (name == "open" and any(set(mode) & set("wax+") for mode in modes)):
            found.add(name)
        elif name == "savefig" and not (node.args and getattr(node.args[0], "id", "") in ("file", "image")):
            found.add(name)  # into memory it is fine
        elif name == "rename" and isinstance(function, ast.Attribute) and len(node.args) == 1:
            found.add(name)
    return found


def test_the_search_for_writers_finds_them():
    source = ("open(p, 'w')\np.open(mode='ab')\np.write_text('')\nnp.save(p, x)\nimport io\nfigure.savefig(path)\n"
              "json.dump(x, f)\nopen(p)\nopen(p, 'rb')\njson.dumps(x)\nfigure.savefig(file)\n"
              "p.open('r+b' if x else 'r')")
    assert writers(source) == {"open", "write_text", "np.save", "savefig", "json.dump"}


@pytest.mark.parametrize("folder", ["acdc", "tasks", "benchmarks"])
def test_nothing_else_writes(folder):
    for path in sorted((ROOT / folder).rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        if name != "acdc/output_folder.py":
            allowed = ALLOWED.get(name, set()) | ({"rename"} if name == "acdc/packaged.py" else set())
            assert writers(path.read_text(encoding="utf-8")) <= allowed, f"{name}: write with acdc.output_folder"


def test_a_file_is_replaced_in_one_step(tmp_path, monkeypatch):
    """At the moment of the rename all is on the disk beside it, and the old content is still there."""
    path = tmp_path / "file"
    write_file(path, "old")
    replace, seen, synced = os.replace, [], []
    monkeypatch.setattr(os, "fsync", synced.append)

    def watched(src, dst):
        seen.append((Path(src).parent, Path(src).read_bytes(), Path(dst).read_bytes(), len(synced)))
        replace(src, dst)

    monkeypatch.setattr(os, "replace", watched)
    write_file(path, b"new")
    assert seen == [(tmp_path, b"new", b"old", 1)] and len(synced) == 2  # the file before, the folder after
    assert path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, call, number):
    path = tmp_path / "file"
    write_file(path, "old")

    def full(*args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(AcdcError, match=rf"cannot write to {path}: {os.strerror(number)}; "):
        write_file(path, "new")
    with (pytest.raises(AcdcError, match=rf"cannot write to {tmp_path / 'out'}: {os.strerror(number)}; "),
          output_folder(tmp_path / "out", ["a"], overwrite=False) as folder):
        write_file(folder.path / "a", "x")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_what_is_in_the_way_is_named(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    for path, reason in ((tmp_path / "file" / "x", "Not a directory|File exists"), (tmp_path / "folder", "directory"),
                         (tmp_path / ("x" * 300), "too long")):
        with pytest.raises(AcdcError, match=f"cannot write to .*({reason})"):
            write_file(path, "x")
    with pytest.raises(AcdcError, match="that is a folder"), output_file(tmp_path / "folder"):
        pass
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder"]


def test_two_runs_in_one_folder(tmp_path):
    for target in (tmp_path / "new", tmp_path):
        with output_folder(target, ["a"], overwrite=False) as folder:
            write_file(folder.path / "a", "first")
            with (pytest.raises(AcdcError, match="another run is writing to"),
                  output_folder(target, ["a"], overwrite=False)):
                pass
        assert (target / "a").read_text() == "first"
    with (output_file(tmp_path / "b"), pytest.raises(AcdcError, match="another run is writing to"),
          output_file(tmp_path / "b")):
        pass
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "a", "new"]


def test_two_runs_by_two_names_and_a_result_that_came_meanwhile(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with (output_folder(tmp_path / "real", [], overwrite=False),
          pytest.raises(AcdcError, match="another run is writing to"),
          output_folder(tmp_path / "link", [], overwrite=False)):
        pass
    with (pytest.raises(AcdcError, match="already holds a"),
          output_folder(tmp_path / "out", ["a"], overwrite=False) as folder):
        write_file(folder.path / "a", "mine")
        write_file(tmp_path / "out" / "a", "another's")
    assert (tmp_path / "out" / "a").read_text() == "another's"


def test_a_folder_without_room_beside_it_is_refused_at_once(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)  # root may write everywhere
    with pytest.raises(AcdcError, match=f"goes beside it, and {tmp_path} is read-only"), output_folder(
            tmp_path / "out", ["a"], overwrite=False):
        pass
    with pytest.raises(AcdcError, match="cannot write to /: it has no name"), output_folder(Path("/"), [], True):
        pass
    assert list((tmp_path / "out").iterdir()) == []


def test_how_a_run_began_is_worth_nothing_alone(tmp_path):
    plan, pieces = tmp_path / "b.plan", tmp_path / "b.pieces-0"
    for path in (plan, pieces):
        with pytest.raises(KeyboardInterrupt) as stop, output_file(tmp_path / "b") as spent:
            spent += [plan, pieces]
            plan.touch()
            path.touch()
            raise KeyboardInterrupt
        assert ("and the same command goes on" in str(stop.value)) == (path == pieces)
        assert plan.exists() == pieces.exists() == (path == pieces)


def test_writers_at_once_leave_one_whole_file(tmp_path):
    path, contents = tmp_path / "file", [bytes([i]) * 100_000 for i in range(6)]
    threads = [threading.Thread(target=write_file, args=(path, content)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() in contents and list(tmp_path.iterdir()) == [path]


def test_what_a_killed_run_left_is_removed(tmp_path):
    (tmp_path / ".out.01234567.part").mkdir()
    (tmp_path / ".out.checkpoint.89abcdef.part").write_text("half")
    (tmp_path / ".other.01234567.part").write_text("of a run that may still be at work")
    with output_folder(tmp_path / "out", ["a"], overwrite=False) as folder:
        write_file(folder.path / "a", "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other.01234567.part", "out"]


def test_a_device_or_a_pipe_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "null").symlink_to("/dev/null")
    for name in ("pipe", "null"):
        with pytest.raises(AcdcError, match="it is a device, a pipe or a socket"):
            write_file(tmp_path / name, "x")
    assert (tmp_path / "pipe").is_fifo() and (tmp_path / "null").is_symlink()


def test_symbolic_links_are_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "file").write_text("mine")
    for name, locked in ((".a.lock", output_file(tmp_path / "a")),
                         (".b.lock", output_folder(tmp_path / "b", [], False)),
                         (".c.lock", Journal(tmp_path / "c", {})), ("d/.lock", grid_folder(tmp_path / "d", {}))):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(victim / "file")
        with pytest.raises((AcdcError, OSError), match="symbolic link"), locked:
            pass
    (tmp_path / ".e.01234567.part").symlink_to(victim)
    remove_parts(tmp_path, "e")
    (tmp_path / "f").symlink_to(victim)
    remove(tmp_path / "f")
    assert (victim / "file").read_text() == "mine" and not (tmp_path / "f").is_symlink()
    assert not list(tmp_path.glob(".e*"))


FILLS = """
import resource, sys
from pathlib import Path
from acdc.errors import AcdcError
from acdc.output_folder import write_file
from acdc.discovery.journal import Journal
if sys.argv[2] == "limit":
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
folder = Path(sys.argv[1])
write_file(folder / "old", b"x" * 100_000)
for write in (lambda: write_file(folder / "old", b"y" * 5_000_000), lambda: fill(folder / "journal")):
    try:
        write()
    except AcdcError as error:
        print(error)
"""
FILL = '''
def fill(path):
    with Journal(path, {"a": 1}) as journal:
        for i in range(100_000):
            journal.append({"i": i, "text": "x" * 100})
'''


@pytest.mark.parametrize("how", ["limit", "disk"])
def test_a_disk_that_is_really_full(tmp_path, how):
    """A small disk where root can mount one; else a limit on the size of files. The old file stays, and a journal keeps
    its whole lines."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(tmp_path)]
    if how == "disk" and (sys.platform != "linux"
                          or subprocess.run(mount, capture_output=True, check=False).returncode):
        pytest.skip("no disk can be mounted here")
    try:
        code = FILLS.replace("if sys.argv", f"{FILL}if sys.argv", 1)
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path), how], capture_output=True, text=True,
                              check=True, timeout=120)
        lines = done.stdout.splitlines()
        assert [line.startswith(f"cannot write to {tmp_path}") for line in lines] == [True, True], done
        assert ("No space left" if how == "disk" else "File too large") in lines[0]
        assert (tmp_path / "old").read_bytes() == b"x" * 100_000
        assert sorted(path.name for path in tmp_path.iterdir()) == ["journal", "old"]
        (tmp_path / "old").unlink()
        with Journal(tmp_path / "journal", {"a": 1}) as journal:
            assert [record["i"] for record in journal.records] == list(range(len(journal.records)))
            assert len(journal.records) > 100
    finally:
        if how == "disk":
            subprocess.run(["umount", str(tmp_path)], check=False, capture_output=True)

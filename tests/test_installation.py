"""What lands in site-packages: acdc alone, whole, from a wheel as well as editable."""

import importlib.metadata
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from test_layers import MODULES, in_fresh_python

from acdc.benchmarks.compiled.load import COMPILED
from acdc.benchmarks.known_circuits.load import KNOWN_CIRCUITS
from acdc.benchmarks.trained.load import TRAINED
from acdc.patches import FILE
from acdc.shipped import SHIPPED

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The names of the files in a wheel built from a copy of the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    sources = folder / "sources"
    tracked = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"], cwd=ROOT,
                             check=True, capture_output=True, text=True).stdout.split("\0")
    for name in filter(None, tracked):
        if (ROOT / name).is_file():
            (sources / name).parent.mkdir(parents=True, exist_ok=True)
            (sources / name).write_bytes((ROOT / name).read_bytes())
    built = subprocess.run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), "."],
                           cwd=sources, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as archive:
        return archive.namelist()


def test_a_wheel_holds_acdc_alone(wheel):
    tops = {name.partition("/")[0] for name in wheel}
    version = importlib.metadata.version("acdc")
    assert tops == {"acdc", f"acdc-{version}.dist-info"}


def test_a_wheel_holds_every_module(wheel):
    names = {name.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for name in wheel
             if name.endswith(".py")}
    assert names == set(MODULES)


def test_a_wheel_holds_the_models_and_circuits_that_are_known(wheel):
    models = [*(f"compiled/{name}" for name in COMPILED), *(f"trained/{name}" for name in TRAINED)]
    files = {f"acdc/benchmarks/{model}.{kind}" for model in models for kind in ("json", "safetensors")}
    files |= {f"acdc/benchmarks/known_circuits/{name}.json" for name in KNOWN_CIRCUITS}
    files |= {f"acdc/shipped_models/{model}/{file}" for model in SHIPPED
              for file in ("config.json", "model.safetensors", FILE)}
    assert files == {name for name in wheel if name.endswith((".json", ".safetensors"))}


def test_a_wheel_holds_the_bundle_of_the_page_without_its_sources(wheel):
    files = {f"acdc/export/web/bundle/{name}" for name in ("page.js", "page.css", "LICENSES.txt")}
    assert files == {name for name in wheel if name.startswith("acdc/export/web/")}


def test_only_acdc_can_be_imported():
    code = """
import importlib.util, sys
for name in sys.argv[1:]: __import__(name)
print([name for name in ("tasks", "benchmarks", "tests") if importlib.util.find_spec(name)])
"""
    assert in_fresh_python(code, "acdc.tasks", "acdc.benchmarks", "acdc.cli") == "[]\n"

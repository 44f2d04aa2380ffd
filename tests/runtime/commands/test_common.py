"""What every command of the runtime does with a bundle or an option that does not fit."""

import shutil

import pytest
from click.testing import CliRunner

from dgl_runtime.bundle.manifest import SCHEMA_VERSION
from dgl_runtime.commands.index import index
from dgl_runtime.commands.search import search
from dgl_runtime.commands.verify import verify
from tests.helpers.commands import failure, run

COMMANDS = {"index": index, "search": search, "verify": verify}
BLOCK = """
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {module!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocked())
"""


@pytest.fixture(params=["index", "search", "verify"])
def with_bundle(request, gallery, videos, tmp_path):
    """A command, and its arguments around a bundle."""

    def arguments(bundle):
        return request.param, *{
            "index": (bundle, videos, "--gallery", tmp_path / "new"),
            "search": (gallery, "a dog", "--bundle", bundle),
            "verify": (bundle,),
        }[request.param]

    return arguments


def test_a_missing_bundle_is_one_line(with_bundle, tmp_path):
    line, _ = failure(*with_bundle(tmp_path / "missing"))
    assert line == (
        f"{tmp_path}/missing is not a bundle: it has no manifest.json. "
        "Give the folder that dgl-export wrote."
    )


def test_a_flipped_byte_is_one_line(with_bundle, bundle, tmp_path):
    copy = shutil.copytree(bundle, tmp_path / "copy")
    for name in ("text_encoder.onnx.data", "clip_encoder.onnx.data"):
        content = bytearray((copy / name).read_bytes())
        content[len(content) // 2] ^= 1
        (copy / name).write_bytes(content)
    line, _ = failure(*with_bundle(copy))
    assert ".onnx.data has sha256 " in line
    assert "the file was damaged or changed. Copy the bundle again, or export it again." in line


def test_an_unknown_schema_version_is_one_line(with_bundle, bundle, tmp_path):
    copy = shutil.copytree(bundle, tmp_path / "copy")
    text = (copy / "manifest.json").read_text()
    (copy / "manifest.json").write_text(
        text.replace(f'"schema_version": {SCHEMA_VERSION}', '"schema_version": 99')
    )
    line, _ = failure(*with_bundle(copy))
    assert line.startswith(
        f"{copy}/manifest.json has schema_version 99, this version reads 2 and {SCHEMA_VERSION}."
    )


@pytest.mark.parametrize(
    ("engine", "module", "extra"),
    [("onnx", "onnxruntime", "cpu"), ("openvino", "openvino", "openvino")],
)
def test_a_missing_engine_is_one_line_that_names_its_extra(
    with_bundle, bundle, engine, module, extra
):
    command, *arguments = with_bundle(bundle)
    before = BLOCK.format(module=module)
    line, _ = failure(command, *arguments, "--engine", engine, before=before)
    assert line.startswith(f"engine '{engine}' needs the package '{module}', which is not inst")
    assert line.endswith(f"Install it with: pip install 'dgl-retrieval[{extra}]'")


def test_help_needs_no_engine():
    for command in ("index", "search", "verify"):
        code, out, err = run(command, "--help", before=BLOCK.format(module="onnxruntime"))
        assert (code, err) == (0, "")
        assert f"Example: dgl-{command}" in out


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        ("index", ("b", "v", "--gallery", "g", "--stride", "1s"), "--stride needs --window."),
        ("index", ("b", "v"), "Missing option '--gallery'."),
        ("index", ("b", "--gallery", "g"), "Missing argument 'VIDEOS...'."),
        ("index", ("b", "v", "--gallery", "g", "--threads", "-1"), "x>=0"),
        ("search", ("g",), "Give a query, --queries FILE or --like FILE."),
        ("search", ("g", "q", "--top", "0"), "x>=1"),
        ("search", ("g", "q", "--device", "tpu"), "'tpu' is not one of 'auto', 'cpu', 'cuda'."),
        ("verify", (), "Missing argument 'BUNDLE'."),
        ("verify", ("b", "c"), "unexpected extra argument"),
        *[
            ("index", ("b", "v", "--gallery", "g", "--window", duration), "is not a duration above")
            for duration in ("", "0", "-1", "10x", "s", "1.2.3", "nan", "inf", "9" * 400, "1 h 2")
        ],
    ],
)
def test_wrong_usage_exits_with_2(command, arguments, message):
    result = CliRunner().invoke(COMMANDS[command], arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert message in line


def test_no_cuda_is_one_line_and_no_fallback(with_bundle, bundle):
    import onnxruntime as ort

    if "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.skip("this machine has CUDA")
    line, _ = failure(*with_bundle(bundle), "--device", "cuda")
    assert "this installation has " in line
    assert "CPUExecutionProvider" in line

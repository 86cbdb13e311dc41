"""Models by name, folder or address; downloads are checked, cached and usable offline."""

import functools
import json
import logging
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from lungseg import storage
from lungseg.config import ModelSettings, PreprocessSettings
from lungseg.errors import CheckpointError, InputError, LungsegError, SettingsError
from lungseg.model import checkpoint, checkpoint_io, sources
from lungseg.model.export_model import export_model
from lungseg.model.model_card import ModelCard
from lungseg.model.network import build_network
from lungseg.schema import SCHEMA

torch.set_num_threads(1)

SMALL = ModelSettings(encoder="tu-test_efficientnet", weights="none")
TRAINED_ON = pa.table({"pixel_digest": ["11", "22"]}).replace_schema_metadata({"lungseg.schema": str(SCHEMA)})
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def save_run(folder: Path, threshold: float = 0.4) -> Path:
    """Write a run with a small network that was not trained."""
    torch.manual_seed(0)
    weights = dict(build_network(SMALL).state_dict())
    config = {
        "run": "pooled-fold0",
        "epoch": 3,
        "preprocess": PreprocessSettings(size=64).model_dump(),
        "settings": {"model": {**SMALL.model_dump(), "weights": "/home/someone/weights.pth"}, "data": ["/secret"]},
    }
    checkpoint_io.save(
        str(folder / "checkpoint"), checkpoint_io.Snapshot(weights, {}, config, storage.table_bytes(TRAINED_ON))
    )
    storage.write_json(str(folder / "run.json"), {"threshold": threshold})
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run(tmp_path_factory.mktemp("runs") / "first")


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "model"
    export_model(checkpoint.find_all(str(run))[0], str(folder), ModelCard(title="Small", terms="CC0-1.0"))
    return folder


class Server:
    """A web server in this process that serves a folder, counts requests and can be switched off."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.requests: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.status = 200
        self.redirect = ""
        server = self

        class Handler(SimpleHTTPRequestHandler):
            def do_GET(self) -> None:
                server.requests.append(self.path)
                server.headers.append(dict(self.headers))
                if server.redirect:
                    self.send_response(302)
                    self.send_header("Location", server.redirect)
                    self.end_headers()
                elif server.status != 200:
                    self.send_error(server.status)
                else:
                    super().do_GET()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server(tmp_path: Path, exported: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Serves the exported model as /model, and as owner/name on a hub; the cache is empty."""
    root = tmp_path / "web"
    shutil.copytree(exported, root / "model")
    for revision in ("main", COMMIT):
        shutil.copytree(exported, root / "owner" / "name" / "resolve" / revision)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    running = Server(root)
    monkeypatch.setenv("HF_ENDPOINT", running.address)
    yield running
    running.stop()


def change(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def assert_loads(folder: str) -> None:
    (model,) = checkpoint.find_all(folder)
    assert {value.dtype for value in checkpoint_io.load_model(model).parameters()} == {torch.float32}
    assert checkpoint.stored_threshold(model) == 0.4
    assert checkpoint.trained_on(model) == {"11", "22"}


@pytest.mark.parametrize("address", ["{web}/model", "hf://owner/name", f"hf://owner/name@{COMMIT}"])
def test_a_downloaded_model_loads(server: Server, address: str) -> None:
    folder = sources.resolve(address.format(web=server.address))
    assert_loads(folder)
    assert sorted(path.name for path in Path(folder).iterdir()) == ["card.json", "config.json", "model.safetensors"]
    assert list(sources.cached()) == [(address.format(web=server.address), folder)]


def test_a_second_use_downloads_only_config_json(server: Server) -> None:
    address = f"{server.address}/model"
    folder = sources.resolve(address)
    server.requests.clear()
    assert sources.resolve(f"{address}/") == folder
    assert server.requests == ["/model/config.json"]


def test_a_commit_is_never_asked_for_again(server: Server) -> None:
    folder = sources.resolve(f"hf://owner/name@{COMMIT}")
    server.requests.clear()
    assert sources.resolve(f"hf://owner/name@{COMMIT}") == folder
    assert server.requests == []


def test_two_addresses_share_one_copy(server: Server) -> None:
    first = sources.resolve("hf://owner/name")
    server.requests.clear()
    assert sources.resolve(f"{server.address}/model") == first
    assert server.requests == ["/model/config.json"]


def test_a_new_version_is_downloaded(server: Server) -> None:
    first = sources.resolve(f"{server.address}/model")
    change(server.folder / "model" / "config.json", epoch=9)
    second = sources.resolve(f"{server.address}/model")
    assert second != first
    assert checkpoint.find_all(second)[0].epoch == 9


def test_the_copy_is_used_offline(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    folder = sources.resolve("hf://owner/name")
    server.status = 503
    with caplog.at_level(logging.WARNING):
        assert sources.resolve("hf://owner/name") == folder
    assert "using the copy of an earlier download" in caplog.text


def test_without_network_or_copy_one_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(InputError, match=r"cannot be downloaded \(.*refused.*\): check the address and the network"):
        sources.resolve("hf://owner/name")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_damaged_copy_is_replaced(server: Server, name: str) -> None:
    folder = Path(sources.resolve(f"{server.address}/model"))
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:-1] + b" ")
    assert sources.resolve(f"{server.address}/model") == str(folder)
    assert (folder / name).read_bytes() == content


def test_a_damaged_copy_is_not_used_offline(server: Server) -> None:
    folder = Path(sources.resolve(f"{server.address}/model"))
    (folder / "model.safetensors").write_bytes(b"damaged")
    server.status = 503
    with pytest.raises(InputError, match="HTTP 503"):
        sources.resolve(f"{server.address}/model")


def test_a_killed_download_continues(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    write = storage.write_bytes

    def killed(path: str, content: bytes) -> None:
        if path.endswith("config.json"):
            raise KeyboardInterrupt
        write(path, content)

    monkeypatch.setattr(storage, "write_bytes", killed)
    with pytest.raises(KeyboardInterrupt):
        sources.resolve(f"{server.address}/model")
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(server.folder.parent / "cache"))
    assert list(sources.cached()) == []
    assert_loads(sources.resolve(f"{server.address}/model"))


def _no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def _no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _other_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"other")


def _web_page(folder: Path) -> None:
    (folder / "config.json").write_text("<html>")


def _other_model(folder: Path) -> None:
    (folder / "config.json").write_text('{"architectures": ["Bert"]}')


def _training(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    del config["model_format"]
    (folder / "config.json").write_text(json.dumps(config))


def _later_format(folder: Path) -> None:
    change(folder / "config.json", model_format=2)


def _encoder_from_hub(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["settings"]["model"]["encoder"] = "tu-hf-hub:owner/name"
    (folder / "config.json").write_text(json.dumps(config))


def _pickle(folder: Path) -> None:
    torch.save({"a": torch.zeros(1)}, folder / "model.safetensors")
    digest = storage.digest_bytes((folder / "model.safetensors").read_bytes())
    change(folder / "config.json", digests={"model.safetensors": digest})


def _escaping_digest(folder: Path) -> None:
    change(folder / "config.json", digests={"../../evil": "0" * 64})


def _long_card(folder: Path) -> None:
    (folder / "card.json").write_text(json.dumps({"title": 7}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_no_config, "it has no config.json"),
        (_no_weights, "it has no model.safetensors"),
        (_other_weights, "the digest of model.safetensors is d9298a10d1b07358, but config.json states"),
        (_web_page, "not a lungseg model.*not valid JSON"),
        (_other_model, "not a lungseg model"),
        (_training, "not an exported model: lungseg export-model"),
        (_later_format, "model format 2.*reads 1"),
        (_encoder_from_hub, "tu-hf-hub:owner/name is not a name of a known network"),
        (_pickle, "model.safetensors has no tensors"),
        (_escaping_digest, "digests.model.safetensors is missing"),
        (_long_card, "title is 7, expected text"),
    ],
)
def test_what_is_no_model_is_refused(server: Server, damage: Any, message: str) -> None:
    damage(server.folder / "model")
    with pytest.raises(InputError, match=message) as refused:
        sources.resolve(f"{server.address}/model")
    assert len(str(refused.value).splitlines()) == 1
    assert not list(sources.cached())
    assert not list(sources.cache_folder().glob("*/config.json"))


def test_too_large_files_are_refused(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_WEIGHTS", 1 << 10)
    monkeypatch.setattr(sources, "BUCKETS", ("file://",))
    for address in (f"{server.address}/model", (server.folder / "model").as_uri()):
        with pytest.raises(InputError, match=r"model\.safetensors: larger than"):
            sources.resolve(address)


@pytest.mark.parametrize(
    ("status", "message"), [(401, "refuses it .HTTP 401.*HF_TOKEN"), (429, "HTTP 429.: try again later")]
)
def test_a_refusing_server_is_named(server: Server, status: int, message: str) -> None:
    server.status = status
    with pytest.raises(InputError, match=message):
        sources.resolve("hf://owner/name")


@pytest.mark.parametrize("target", ["http://example.org/config.json", "file:///etc/passwd"])
def test_redirects_to_unencrypted_addresses_are_refused(server: Server, target: str) -> None:
    server.redirect = target
    with pytest.raises(LungsegError, match=r"not encrypted|cannot be downloaded"):
        sources.resolve(f"{server.address}/model")


def test_the_token_stays_with_the_hub(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_TOKEN", "placeholder")
    other = Server(tmp_path)
    server.redirect = f"{other.address}/config.json"
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        sources.resolve("hf://owner/name")
    other.stop()
    assert server.headers[0]["Authorization"] == "Bearer placeholder"
    assert "Authorization" not in other.headers[0]


@pytest.mark.parametrize(
    "address",
    [
        "http://example.org/model",
        "https://[bad/model",
        "hf://owner",
        "hf://owner/../name",
        "hf://owner/name/deeper",
        "hf://owner/name@../../other",
    ],
)
def test_malformed_addresses_are_refused(address: str) -> None:
    with pytest.raises(SettingsError):
        sources.resolve(address)


def test_a_model_in_a_bucket_is_copied(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "BUCKETS", ("file://",))  # goes through the same file systems as s3://
    folder = sources.resolve((server.folder / "model").as_uri())
    assert Path(folder).parent == sources.cache_folder()
    assert_loads(folder)


def test_a_run_in_a_bucket_is_not_copied(run: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "BUCKETS", ("file://",))
    assert sources.resolve(run.as_uri()) == run.as_uri()
    with pytest.raises(CheckpointError, match="no such folder"):
        checkpoint.find_all(sources.resolve(f"{run.as_uri()}-other"))


@pytest.mark.slow
def test_a_model_in_s3_is_copied(bucket: str, server: Server) -> None:
    for path in (server.folder / "model").iterdir():
        storage.write_bytes(f"{bucket}/model/{path.name}", path.read_bytes())
    assert_loads(sources.resolve(f"{bucket}/model"))
    with pytest.raises(CheckpointError, match="no such folder"):
        checkpoint.find_all(sources.resolve(f"{bucket}/other"))


@pytest.fixture
def released(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package has one model named lungs."""
    monkeypatch.setattr(sources, "RELEASED", tmp_path / "released")
    return shutil.copytree(exported, tmp_path / "released" / "lungs")


def test_an_installed_name_is_found(released: Path) -> None:
    assert sources.resolve("lungs") == str(released)
    assert_loads(str(released))


def test_a_similar_name_is_suggested(released: Path) -> None:
    with pytest.raises(CheckpointError, match=r"lung is no installed model: did you mean lungs\?"):
        sources.resolve("lung")


def test_a_local_run_is_found(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.parent)
    assert sources.resolve("first") == str(run)


def test_a_run_named_like_an_installed_model_is_mentioned(
    released: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(run, tmp_path / "work" / "lungs")
    monkeypatch.chdir(tmp_path / "work")
    with caplog.at_level(logging.WARNING):
        assert sources.resolve("lungs") == str(released)
    assert "pass ./lungs for the folder" in caplog.text
    assert sources.resolve("./lungs") == str(tmp_path / "work" / "lungs")


def test_an_installed_model_has_one_name_everywhere(released: Path, run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(released, tmp_path / "copy")
    for folder in (released, copy):
        assert sources.model_name(checkpoint.find_all(str(folder))) == "lungs"
    own = checkpoint.find_all(str(run))
    assert sources.model_name(own) == own[0].config["run"]
    several = "(2 models; each image by those not trained on it)"
    in_study = replace(own[0], config={**own[0].config, "settings": {"study": "first"}})
    assert sources.model_name([in_study, in_study]) == f"first {several}"
    released_models = checkpoint.find_all(str(released))
    assert sources.model_name([*own, *released_models]) == f"{own[0].config['run']}, lungs {several}"

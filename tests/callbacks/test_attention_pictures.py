"""Pictures of the attention: what they show, when they come, and that they change nothing."""

import logging
from collections.abc import Callable
from pathlib import Path

import lightning
import numpy as np
import pytest
import torch
from omegaconf import DictConfig
from toy_training import read_events

from seq2seq.assembly import build_callbacks, build_datamodule, build_module, initialize_weights
from seq2seq.callbacks.attention_pictures import AttentionPictures
from seq2seq.callbacks.charts import writers
from seq2seq.data.tokenizer import BOS_ID, EOS_ID
from seq2seq.module import TranslationModule
from seq2seq.scoring import TranslatedPair
from seq2seq.train import train
from seq2seq.translator import Alignment, Translator

Compose = Callable[..., DictConfig]

SOURCES = ["3 1", "2 2 0 1 3 2", "1"]


def untrained(config: DictConfig) -> TranslationModule:
    datamodule = build_datamodule(config)
    module = build_module(config, datamodule)
    initialize_weights(config, module, datamodule.split("train"))
    return module.eval()


def alignments(translator: Translator, sources: list[str]) -> list[Alignment]:
    return [best.alignment for (best,) in translator.translate(sources, alignments=True)]


def test_weights_are_those_of_luongs_general_score_step_by_step(compose: Compose) -> None:
    module = untrained(compose("model=lstm_attention"))
    model, translator = module.model.double(), module.validation_translator
    found_for = zip(
        SOURCES, translator.translate(SOURCES), alignments(translator, SOURCES), strict=True
    )
    for source, (written,), found in found_for:
        assert found.source == [*source.split(), "<eos>"]
        assert " ".join(name for name in found.target if name != "<eos>") == written.text
        ids = [*translator.source_tokenizer.encode(source), EOS_ID]
        # The equations of the paper, one step after the other and without padding.
        encoded = model.encoder(torch.tensor([ids]), torch.tensor([len(ids)]))
        memory = encoded.outputs[0].detach().numpy()
        query = model.decoder.attention.key_projection.weight.detach().numpy()
        state = model.bridge(encoded.state)
        token = BOS_ID
        for row, name in enumerate(found.target):
            embedded = model.decoder.embedding(torch.tensor([[token]]))
            output, state = model.decoder.layers[0](embedded, None, state)
            scores = memory @ query.T @ output[0, 0].detach().numpy()
            expected = np.exp(scores - scores.max())
            np.testing.assert_allclose(found.weights[row], expected / expected.sum(), rtol=1e-9)
            (token,) = translator.target_tokenizer.encode(name) if name != "<eos>" else (EOS_ID,)


def test_padding_does_not_show(compose: Compose) -> None:
    module = untrained(compose("model=lstm_attention"))
    together = alignments(module.validation_translator, SOURCES)
    for source, found in zip(SOURCES, together, strict=True):
        (alone,) = alignments(module.validation_translator, [source])
        assert found.source == alone.source
        assert found.target == alone.target
        assert found.weights.shape == (len(found.target), len(source.split()) + 1)
        np.testing.assert_allclose(found.weights, alone.weights, rtol=1e-4)
        np.testing.assert_allclose(found.weights.sum(axis=1), 1, rtol=1e-5)


def test_pictures_come_after_each_validation_and_change_nothing(
    compose: Compose, tmp_path: Path
) -> None:
    options = ("model=lstm_attention", "model.output_dropout=0.3", "trainer.max_epochs=2")
    train(compose(*options, "callbacks.attention_pictures.count=3", folder="with"))
    train(compose(*options, "callbacks.attention_pictures=null", folder="without"))
    events = read_events(tmp_path / "with" / "tensorboard")
    assert events.Tags()["images"] == ["attention/0", "attention/1", "attention/2"]
    assert [picture.step for picture in events.Images("attention/0")] == [5, 11]
    assert not read_events(tmp_path / "without" / "tensorboard").Tags()["images"]
    kept = [
        torch.load(tmp_path / run / "checkpoints" / "last.ckpt", weights_only=True)
        for run in ("with", "without")
    ]
    for name, weight in kept[0]["state_dict"].items():
        assert torch.equal(weight, kept[1]["state_dict"][name]), name


def test_a_model_without_attention_says_that_there_are_no_pictures(
    compose: Compose, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        train(compose("model=lstm", "trainer.max_steps=1"))
    assert caplog.text.count("no attention pictures") == 1
    assert not read_events(tmp_path / "run" / "tensorboard").Tags()["images"]


def test_weights_that_are_not_finite_cost_the_picture_and_not_the_run(
    compose: Compose, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = compose("model=lstm_attention")
    module = untrained(config)
    trainer = lightning.Trainer(
        logger=[lightning.pytorch.loggers.TensorBoardLogger(tmp_path)],
        callbacks=build_callbacks(config, tmp_path),
        enable_progress_bar=False,
    )
    (callback,) = [one for one in trainer.callbacks if isinstance(one, AttentionPictures)]
    assert writers(trainer)
    module.translated["val"] = [TranslatedPair("1 2", "1 2", "")]
    torch.nn.init.constant_(module.model.decoder.output.bias, torch.nan)
    callback.on_validation_end(trainer, module)
    assert "no attention pictures at step 0" in caplog.text


def test_no_pictures_are_asked_for_with_null() -> None:
    with pytest.raises(ValueError, match=r"count=0 must be at least 1; set .* to null"):
        AttentionPictures(count=0)

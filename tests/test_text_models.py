"""Text classifiers of transformers from folders."""

import builtins

import pytest
import torch

from captum_iba.errors import InvalidArgumentError, MissingDependencyError
from captum_iba.text_models import load_text_classifier
from tests.comparison.text_cases import TEXTS, bert, tokenizer, transformers


def save(folder, model=None, with_tokenizer=True):
    (bert() if model is None else model).save_pretrained(folder)
    if with_tokenizer:
        tokenizer().save_pretrained(folder)
    return folder


def test_a_folder_gives_back_model_and_tokenizer(tmp_path):
    """The same logits and ids; half precision becomes float32, in evaluation mode; classes have their names."""
    model = bert()
    model.config.id2label, model.config.label2id = {0: "dull", 1: "warm", 2: "odd"}, {"dull": 0, "warm": 1, "odd": 2}
    found = load_text_classifier(save(tmp_path / "a", model))
    assert list(found.categories) == ["dull", "warm", "odd"] and not found.model.training
    ids = found.tokenizer(TEXTS[0], return_tensors="pt")
    assert torch.equal(ids["input_ids"], tokenizer()(TEXTS[0], return_tensors="pt")["input_ids"])
    torch.testing.assert_close(found.model(**ids).logits, bert()(**ids).logits)
    half = load_text_classifier(save(tmp_path / "b", model.half()))
    assert {parameter.dtype for parameter in half.model.parameters()} == {torch.float32}
    torch.testing.assert_close(half.model(**ids).logits, found.model(**ids).logits, rtol=0.02, atol=0.02)


def test_what_is_no_classifier_is_refused(tmp_path, monkeypatch):
    """An empty folder, a name that leads nowhere, a model without a head, and one without tokenizer: each by name."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "empty").mkdir()
    headless = transformers.BertModel(bert().config)
    cases = {
        tmp_path / "empty": "cannot be loaded as a text classifier: ",
        "nobody/nothing-at-all": r"no folder here, so a name on the Hugging Face hub\) cannot be loaded",
        save(tmp_path / "headless", headless): r"has no weights for classifier.bias, classifier.weight, which are thus",
        save(tmp_path / "mute", with_tokenizer=False): "has no tokenizer (that can be loaded|with words)",
    }
    for folder, said in cases.items():
        with pytest.raises(InvalidArgumentError, match=said):
            load_text_classifier(folder)


def test_without_transformers_the_extra_is_named(tmp_path, monkeypatch):
    """The command that installs it."""
    real = builtins.__import__

    def refuse(name, *rest):
        if name == "transformers":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingDependencyError, match=r"pip install 'captum_iba\[text\]'"):
        load_text_classifier(tmp_path)

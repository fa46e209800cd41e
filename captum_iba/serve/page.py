"""The page itself, made with gradio.

Gradio rather than Streamlit: a page is a list of inputs, a function and a list of outputs, and the functions exist;
Streamlit runs a script of its own from top to bottom at each click, has to be started by its own command, and brings
pyarrow and more besides. Nothing leaves the computer: fonts are the system's, gradio's analytics are off, and it is
never asked for a public address.
"""

from __future__ import annotations

import html
import os
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import cycle
from typing import Any

from captum_iba._ports import listening
from captum_iba.errors import CaptumIBAError, InvalidArgumentError, MissingDependencyError
from captum_iba.serve.photo import PhotoExplanation, PhotoModel, explain_photo
from captum_iba.serve.text import TextExplanation, TextModel, explain_text, tokens_to_html

_FOLDER = "GRADIO_TEMP_DIR"
_FIRST_PORT, _LAST_PORT = 7860, 7959
_CSS = """
.iba-figures { display: flex; flex-wrap: wrap; gap: .5rem 2.5rem; margin: .2rem 0 .6rem; }
.iba-figures div { display: flex; flex-direction: column; color: var(--body-text-color-subdued); font-size: .85rem; }
.iba-figures b { font-size: 1.7rem; line-height: 1.2; color: var(--body-text-color); }
.iba-note { color: var(--body-text-color-subdued); font-size: .9rem; margin: .2rem 0; }
.iba-error { border-left: 4px solid #b3261e; padding: .4rem .8rem; margin: .4rem 0; color: var(--body-text-color); }
.iba-tokens { display: flex; flex-wrap: wrap; gap: .3rem; margin: .4rem 0 .8rem; }
.iba-tokens span { border-radius: .3rem; padding: .15rem .45rem; text-align: center; color: var(--body-text-color);
                   background: rgb(30 110 210 / calc(var(--share) * .55)); }
.iba-tokens small { display: block; font-size: .7rem; opacity: .8; }
footer { display: none !important; }
"""
_EXPLAINED = (
    "How many **bits** of a layer the decision needs, and where. Bits at a position mean that its features are needed; "
    "none, that they are not. A larger **beta** keeps fewer bits."
)


def build_page(photos: Mapping[str, PhotoModel], texts: Mapping[str, TextModel]) -> Any:
    """The page, a ``gradio.Blocks``.

    Args:
        photos (Mapping[str, PhotoModel]): by the name they are chosen by.
        texts (Mapping[str, TextModel]): by the name they are chosen by.

    Raises:
        MissingDependencyError: gradio is not installed.
        InvalidArgumentError: there is no model at all.
    """
    gradio = _gradio()
    if not photos and not texts:
        raise InvalidArgumentError("There is no model to serve; wanted one of photos or one of texts.")
    with gradio.Blocks(title="captum-iba", analytics_enabled=False) as page:
        gradio.Markdown(f"# Information Bottleneck Attribution\n{_EXPLAINED}")
        if photos:
            with gradio.Tab("Photo"):
                _photo_tab(gradio, photos)
        if texts:
            with gradio.Tab("Sentence"):
                _text_tab(gradio, texts)
    return page


def serve(
    photos: Mapping[str, PhotoModel],
    texts: Mapping[str, TextModel],
    host: str = "127.0.0.1",
    port: int | None = None,
    when_ready: Callable[[str], object] = print,
) -> None:
    """Show the page until the process is interrupted.

    Args:
        photos (Mapping[str, PhotoModel]): by the name they are chosen by.
        texts (Mapping[str, TextModel]): by the name they are chosen by.
        host (str, optional): the interface. Default: ``"127.0.0.1"``, this computer alone; the page asks nobody who
            they are.
        port (int, optional): Default: None: the first from 7860 that is free.
        when_ready (Callable, optional): called with the address. Default: ``print``.

    Raises:
        MissingDependencyError: gradio is not installed.
        InvalidArgumentError: no model, or an address that cannot be had.
    """
    gradio = _gradio()
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    with _own_folder():
        page = build_page(photos, texts)
        page.launch(
            server_name=host,
            server_port=_free_port(host, port),
            share=False,
            inbrowser=False,
            quiet=True,
            show_error=True,
            ssr_mode=False,
            prevent_thread_lock=True,
            footer_links=[],
            theme=gradio.themes.Soft(primary_hue="blue", **fonts),
            css=_CSS,
        )
        try:
            when_ready(page.local_url)
            threading.Event().wait()
        except KeyboardInterrupt:
            pass
        finally:
            page.close(verbose=False)


@contextmanager
def _own_folder() -> Iterator[None]:
    """A folder for what is dropped on the page, which gradio would keep; it goes when the page does."""
    before = os.environ.get(_FOLDER)
    with tempfile.TemporaryDirectory(prefix="captum-iba-", ignore_cleanup_errors=True) as folder:
        os.environ[_FOLDER] = folder
        try:
            yield
        finally:
            if before is None:
                del os.environ[_FOLDER]
            else:
                os.environ[_FOLDER] = before


def _gradio() -> Any:
    # read where gradio is imported
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio
    except ImportError as error:
        raise MissingDependencyError("The page needs gradio: pip install 'captum_iba[serve]'.") from error
    return gradio


def _free_port(host: str, port: int | None) -> int:
    with listening(host, 0):  # the host is there
        pass
    choices = range(_FIRST_PORT, _LAST_PORT + 1) if port is None else [port]
    for choice in choices:
        try:
            with listening(host, choice) as bound:
                return int(bound.getsockname()[1])
        except InvalidArgumentError:
            if choice == choices[-1]:
                raise
    raise AssertionError("there is always a last choice")


def _photo_tab(gradio: Any, models: Mapping[str, PhotoModel]) -> None:
    with gradio.Row():
        with gradio.Column(scale=2):
            photo = gradio.Image(
                type="pil", image_mode="RGB", sources=["upload", "clipboard"], label="Photo", height=280
            )
            if "embedded digits" in models:
                canvas = gradio.Button("A canvas of the embedded digits", size="sm")
                canvas.click(_next_canvas(), outputs=photo, show_progress="hidden", queue=False)
            photo.preprocess = _read_or_reason(photo.preprocess)
            controls = _controls(gradio, models)
            button = gradio.Button("Explain", variant="primary")
        with gradio.Column(scale=3):
            result, plot = gradio.HTML(), gradio.Plot(show_label=False, label="Bits per pixel")

    def run(photo: Any, name: str, layer: str, target: str, beta: float, progress: Any = gradio.Progress()) -> Any:  # noqa: B008
        def explain() -> tuple[str, Any]:
            if isinstance(photo, CaptumIBAError):
                raise photo
            over = _counted(progress)
            found = explain_photo(models[name], photo, layer or "", target or "", beta, over)
            found.figure.set_size_inches(9, 4)
            return figures_to_html(found), found.figure

        return _or_line(explain)

    button.click(run, [photo, *controls], [result, plot], show_progress_on=plot)


def _text_tab(gradio: Any, models: Mapping[str, TextModel]) -> None:
    with gradio.Row():
        with gradio.Column(scale=2):
            sentence = gradio.Textbox(label="Sentence", lines=3)
            controls = _controls(gradio, models)
            every = gradio.Checkbox(value=True, label="every layer")
            button = gradio.Button("Explain", variant="primary")
        with gradio.Column(scale=3):
            result, plot = gradio.HTML(), gradio.Plot(show_label=False, label="Bits per token")

    def run(
        sentence: str,
        name: str,
        layer: str,
        target: str,
        beta: float,
        every: bool,
        progress: Any = gradio.Progress(),  # noqa: B008
    ) -> Any:
        def explain() -> tuple[str, Any]:
            over = _counted(progress)
            found = explain_text(models[name], sentence, layer or "", target or "", beta, every, over)
            return figures_to_html(found, tokens_to_html(found.tokens, found.bits)), found.figure

        return _or_line(explain)

    gradio.on([button.click, sentence.submit], run, [sentence, *controls, every], [result, plot], show_progress_on=plot)


def _controls(gradio: Any, models: Mapping[str, PhotoModel] | Mapping[str, TextModel]) -> list[Any]:
    """Model, layer, class and beta; the layers are those of the model."""
    first = next(iter(models))
    name = gradio.Dropdown(list(models), value=first, label="Model")
    layer = gradio.Dropdown(
        models[first].layers, value=models[first].layer, label="Layer (or a dotted name)", allow_custom_value=True
    )
    with gradio.Row():
        target = gradio.Textbox(label="Class", placeholder="the predicted one", max_lines=1, min_width=120)
        beta = gradio.Number(value=10, label="beta", min_width=120)
    name.change(lambda chosen: gradio.Dropdown(choices=models[chosen].layers, value=models[chosen].layer), name, layer)
    return [name, layer, target, beta]


def _counted(progress: Any) -> Callable[[Iterable[Any]], Iterator[Any]]:
    """Goes over the batches of a calibration and shows how far it is."""

    def over(batches: Iterable[Any]) -> Iterator[Any]:
        total = len(batches)  # type: ignore[arg-type]
        for number, batch in enumerate(batches):
            progress((number, total), desc="feature statistics of this layer, once", unit="batches")
            yield batch

    return over


def _read_or_reason(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Reads what was dropped; what is no picture becomes the error that it is, to be shown like any other."""

    def run(payload: Any) -> Any:
        try:
            return read(payload)
        except (OSError, ValueError, SyntaxError) as error:  # SyntaxError: a broken PNG
            return InvalidArgumentError(f"This is no picture that can be read ({type(error).__name__}): drop another.")

    return run


def _or_line(explain: Callable[[], tuple[str, Any]]) -> tuple[str, Any]:
    """What is explained, or a line that says why not."""
    try:
        return explain()
    except CaptumIBAError as error:
        return f'<p class="iba-error" role="alert">{html.escape(str(error))}</p>', None


def figures_to_html(found: PhotoExplanation | TextExplanation, below: str = "") -> str:
    """The figures of an explanation and its notes.

    Args:
        found (PhotoExplanation or TextExplanation): the explanation.
        below (str, optional): HTML between figures and notes.
    """
    figures = {
        f"bits at {found.layer}": f"{found.total_bits:.0f}" if found.total_bits >= 100 else f"{found.total_bits:.1f}",
        f"probability of class {found.index}": f"{found.label}, {found.probability:.3f}",
        "through the bottleneck": f"{found.probability_through:.3f}",
    }
    cells = "".join(f"<div><b>{html.escape(value)}</b>{html.escape(name)}</div>" for name, value in figures.items())
    notes = "".join(f'<p class="iba-note">{html.escape(note)}</p>' for note in found.notes)
    return f'<div class="iba-figures">{cells}</div>{below}{notes}'


def _next_canvas() -> Callable[[], Any]:
    """One held-out canvas after another, as a picture."""
    from PIL import Image

    from captum_iba.demo import load_canvases, to_display

    greys = (to_display(load_canvases("test", 20).images) * 255).byte()[:, 0].numpy()
    # enlarged by a whole factor, which the model's preparation undoes
    large = [Image.fromarray(grey).resize((256, 256), Image.Resampling.NEAREST) for grey in greys]
    pictures = cycle([one.convert("RGB") for one in large])
    return lambda: next(pictures)

"""Text to ids and back: Gemma's real vocabulary where it is at hand, a small one of its kind everywhere."""

from types import SimpleNamespace

import pytest
from helpers.paths import PUBLISHED_TOKENIZER
from helpers.vocabulary import FORMS, train
from hypothesis import given, settings
from hypothesis import strategies as st

from pg_mlx.errors import InputError
from pg_mlx.processor import Processor, TextStream, Tokenizer
from pg_mlx.processor.tokenizer import LOCATIONS, SEGMENTS

REAL = PUBLISHED_TOKENIZER


needs_real = pytest.mark.skipif(
    not all((REAL / form).is_file() for form in FORMS),
    reason="needs PaliGemma's tokenizer.model and tokenizer.json; name their folder in PG_MLX_TOKENIZER",
)


COW = [6006, 603, 573, 13910, 9980, 235336, 108]


DETECTED = "<loc0012><loc0345><loc0678><loc1023> cat ; <loc0000><loc0001><loc0999><loc1000> brown dog"


SEGMENTED = "<loc0012><loc0345><loc0678><loc1023>" + "".join(SEGMENTS[5:21]) + " cat"


TEXTS = [
    "Where is the cow standing?",
    "  two leading spaces, two trailing  ",
    "".join(f"{n}{' ' * n}" for n in range(32)) + "\tand\t\ttabs",
    "one\nline\n\nand\n\n\nmore\n\n\n\n\n\n\n\nlines\r\n",
    "0 1 22 333 4444 55555 3.14159 1,000,000 0x7f",
    "El niño comió piñas; la fête à l’œuvre; Straße, Größe; Ærø; İstanbul; žluťoučký kůň",
    "Где стоит корова? Що це? Πού είναι η αγελάδα;",
    "牛はどこに立っていますか?奶牛站在哪里?소는 어디에 서 있나요?",
    "أين تقف البقرة؟ היכן עומדת הפרה? गाय कहाँ खड़ी है? วัวยืนอยู่ที่ไหน",
    "😀🐄👩‍👩‍👧‍👦🇺🇦 e\u0301 \u200d \u00a0 \u3000 \ufeff ",
    "rare: 𓀀 𐍈 𝔊 \ue000 \x00 \x7f \x1b",
    "def f(x): return {x ** 2 for _ in range(10)}  # C:\\dir\\file $100 50% a@b.c",
    "detect cat ; dog",
    "<bos> <eos> <pad> <unk> <image> spelt out, <0x41> too",
    "<loc12> <loc1024> <loc00001> <seg128> <seg5> <loc> are no regions, <loc0001> is",
    DETECTED,
    SEGMENTED,
]


# "▁" stands for a space in both file forms, so it alone cannot come back as itself.
texts = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="▁"), max_size=40)


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Tokenizer:
    """A vocabulary as plain Gemma's: nothing in it for regions."""
    path = tmp_path_factory.mktemp("plain") / "tokenizer.model"
    train(path)
    return Tokenizer.from_file(path)


@pytest.fixture(scope="module")
def real() -> SimpleNamespace:
    return SimpleNamespace(**{form.split(".")[1]: Tokenizer.from_file(REAL / form) for form in FORMS})


@needs_real
@pytest.mark.parametrize("form", ["model", "json"])
def test_gemmas_ids_are_those_of_hugging_faces_example(real, form):
    processor = Processor(getattr(real, form), 224)
    assert processor.tokenizer.encode("Where is the cow standing?\n") == COW
    for prompt in (
        "Where is the cow standing?",
        "Where is the cow standing?\n",
        "<image><bos>Where is the cow standing?",
    ):
        assert processor.prompt_ids(prompt) == [2, *COW]
    assert processor.suffix_ids("on the beach") == [477, 573, 8318, 1]


@needs_real
@pytest.mark.parametrize("form", ["model", "json"])
def test_gemmas_regions_stand_at_the_end_of_its_vocabulary(real, form):
    tokenizer = getattr(real, form)
    assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.bos_id) == (0, 1, 2)
    assert tokenizer.newline_ids == [108]
    assert tokenizer.location_ids == range(256_000, 257_024)
    assert tokenizer.segmentation_ids == range(257_024, 257_152)
    assert tokenizer.vocab_size == 257_152


@needs_real
@pytest.mark.parametrize("text", TEXTS)
def test_gemmas_two_forms_agree_and_return_the_text(real, text):
    ids = real.model.encode(text)
    assert real.json.encode(text) == ids
    assert real.model.decode(ids) == text
    assert real.json.decode(ids) == text


@needs_real
@pytest.mark.parametrize("form", ["model", "json"])
def test_gemmas_region_strings_are_one_id_each(real, form):
    tokenizer = getattr(real, form)
    ids = tokenizer.encode(SEGMENTED)
    assert ids[:4] == [256_012, 256_345, 256_678, 257_023]
    assert ids[4:20] == list(range(257_029, 257_045))
    assert tokenizer.decode(ids[20:]) == " cat"
    assert tokenizer.decode(tokenizer.encode(DETECTED)) == DETECTED


@settings(deadline=None, max_examples=200)
@given(text=texts)
def test_decoding_returns_the_encoded_text(small, text):
    ids = small.encode(text)
    assert all(0 <= i < small.vocab_size for i in ids)
    assert small.decode(ids) == text


@pytest.mark.parametrize("text", TEXTS)
def test_listed_texts_return_from_every_vocabulary(small, plain, text):
    for tokenizer in (small, plain):
        assert tokenizer.decode(tokenizer.encode(text)) == text


@settings(deadline=None, max_examples=100)
@given(before=texts, after=texts, piece=st.sampled_from([*LOCATIONS, *SEGMENTS]))
def test_a_region_is_one_id_wherever_it_stands(small, plain, before, after, piece):
    for tokenizer in (small, plain):
        regions = [*tokenizer.location_ids, *tokenizer.segmentation_ids]
        ids = tokenizer.encode(before + piece + after)
        assert ids == [
            *tokenizer.encode(before),
            regions[[*LOCATIONS, *SEGMENTS].index(piece)],
            *tokenizer.encode(after),
        ]
        assert tokenizer.decode(ids) == before + piece + after


def test_the_two_forms_have_the_same_ids(folder):
    model, other = (Tokenizer.from_file(folder / form) for form in FORMS)
    for name in ("vocab_size", "location_ids", "segmentation_ids", "pad_id", "eos_id", "bos_id", "newline_ids"):
        assert getattr(model, name) == getattr(other, name), name
    assert [model.piece(i) for i in range(model.vocab_size)] == [other.piece(i) for i in range(other.vocab_size)]


def test_control_names_in_text_are_letters(small):
    for name in ("<bos>", "<eos>", "<pad>", "<image>"):
        ids = small.encode(f"a {name} b")
        assert not {small.bos_id, small.eos_id, small.pad_id} & {*ids}
        assert max(ids) < small.vocab_size
        assert small.decode(ids) == f"a {name} b"


def test_control_ids_add_nothing_to_text(small):
    ids = small.encode("a cat")
    assert small.decode([small.bos_id, *ids, small.eos_id, small.pad_id, small.pad_id]) == "a cat"


def test_ids_outside_the_vocabulary_are_refused(small, plain):
    for tokenizer in (small, plain):
        assert tokenizer.piece(tokenizer.vocab_size - 1)
        for outside in (-1, tokenizer.vocab_size, 10**9):
            with pytest.raises(InputError, match=str(outside)):
                tokenizer.piece(outside)


def test_a_vocabulary_without_regions_gets_them_behind_its_last_piece(plain):
    size = plain.location_ids[0]
    assert size < 1000
    assert plain.location_ids == range(size, size + 1024)
    assert plain.segmentation_ids == range(size + 1024, size + 1152)
    assert plain.vocab_size == size + 1152
    assert plain.encode("<seg127><loc0000>") == [size + 1151, size]
    assert plain.decode(plain.encode(DETECTED)) == DETECTED


def test_a_region_is_spelt_in_ascii_digits(small, plain):
    for tokenizer in (small, plain):
        for text in ("<loc0１２3>", "<seg٠٠١>"):
            assert tokenizer.decode(tokenizer.encode(text)) == text


def test_text_that_is_no_unicode_is_refused(small):
    with pytest.raises(InputError, match=r"^the text is not valid Unicode at character 3.*\Z"):
        small.encode("cat\udcff")


def test_truncation_and_padding_left_in_the_file_are_ignored(folder, tmp_path):
    import tokenizers

    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.enable_truncation(2)
    backend.enable_padding(length=9, pad_id=0, pad_token="<pad>")
    backend.save(str(tmp_path / "tokenizer.json"))
    expected = Tokenizer.from_file(folder / "tokenizer.json")
    for text in ("a", "where is the cow standing?"):
        assert Tokenizer.from_file(tmp_path / "tokenizer.json").encode(text) == expected.encode(text)


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_a_stream_gives_what_decoding_gives(small, data):
    bytes_first = small.encode("\x00")[0]
    anything, spelt = st.integers(0, small.vocab_size - 1), st.integers(bytes_first, bytes_first + 255)
    ids = data.draw(st.lists(anything | spelt, max_size=30))
    stream = TextStream(small)
    pushed = [stream.push(i) for i in ids]
    assert "".join(pushed) + stream.flush() == small.decode(ids)


def test_a_region_is_visible_in_its_own_push(small):
    stream = TextStream(small)
    assert [stream.push(i) for i in small.encode("<loc0007><seg001>")] == ["<loc0007>", "<seg001>"]
    stream.push(small.encode("🐄")[0])
    assert stream.push(small.location_ids[7]) == "\ufffd<loc0007>"


def test_an_unfinished_character_is_held_back_and_flushed_as_a_replacement(small):
    cow = small.encode("🐄")
    assert len(cow) == 4
    stream = TextStream(small)
    assert [stream.push(i) for i in cow] == ["", "", "", "🐄"]
    assert [stream.push(i) for i in cow[:3]] == ["", "", ""]
    assert stream.flush() == "\ufffd" == small.decode(cow[:3])

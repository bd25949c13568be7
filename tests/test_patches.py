"""Images as prompts: every image comes back, pixel by pixel, and what is no image is refused."""

import pytest
import torch
from tiny_vision import LABELS, some_images, tiny_vit

from acdc.errors import AcdcError
from acdc.models import load_model, load_tokenizer
from acdc.patches import FILE, PatchTable
from acdc.task import Example, Task

IMAGES = some_images()
TABLE = PatchTable.of_images(IMAGES, 2, LABELS)


def test_images_come_back():
    tokens = TABLE.tokens(IMAGES)
    assert torch.equal(TABLE.images(tokens), IMAGES)
    assert TABLE.grid == (2, 4) and tokens.shape == (12, TABLE.length) == (12, 9)
    for row in range(2):
        for column in range(4):
            name = TABLE.place_names()[row * 4 + column]
            assert name == f"patch r{row + 1} c{column + 1}"
            patch = TABLE.pixels[tokens[5, row * 4 + column] - TABLE.cls - 1]
            assert torch.equal(patch, IMAGES[5, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2])
    assert len(TABLE) == 5 + 1 + 8 * 12 - 6 * 4 and sorted(set(tokens.flatten().tolist())) == list(range(5, len(TABLE)))


def test_text_is_what_tasks_need():
    clean, corrupted = TABLE.text(IMAGES[:2])
    (batch,) = Task("animals", (Example(clean, corrupted, " sea_urchin", " 7"),)).batches(TABLE)
    assert torch.equal(torch.cat([batch.clean, batch.corrupted]), TABLE.tokens(IMAGES[:2]))
    assert (batch.answer.item(), batch.wrong.item(), batch.first_difference) == (3, 4, 4)
    assert TABLE.decode(TABLE(clean)["input_ids"]) == clean and TABLE("")["input_ids"] == []
    assert clean.endswith(" [CLS]")


def test_a_table_is_stored_with_its_model(tmp_path):
    hf, images = tiny_vit(torch.float32), IMAGES.float()
    hf.save_pretrained(tmp_path)
    with pytest.raises(AcdcError, match=f"no table of patches that can be read .{FILE}.*tokenizer"):
        load_model(tmp_path)
    table = PatchTable.of_model(images, hf.config)
    table.save(tmp_path)
    model = load_model(tmp_path)
    assert torch.equal(model.tokenizer.pixels, table.pixels) and model.tokenizer.words == table.words
    assert load_tokenizer(str(tmp_path)).labels == table.labels
    assert load_model(tmp_path, table).tokenizer is table
    with torch.no_grad():
        torch.testing.assert_close(model.hf(table.tokens(images)).logits[:, -1], hf(images).logits)
    (tmp_path / FILE).write_bytes(b"no table")
    with pytest.raises(AcdcError, match="no table of patches that can be read"):
        load_model(tmp_path)


def test_what_is_no_image_is_refused():
    tokens = TABLE.tokens(IMAGES[:1])
    for wrong in (tokens[:, :-1], tokens.flip(1), torch.cat([tokens[:, :7], tokens[:, -2:] * 0 + 5], 1),
                  torch.cat([tokens[:, :4], tokens[:, :4] * 0 + 2, tokens[:, -1:]], 1)):
        with pytest.raises(AcdcError, match="are no images: this model reads 2 x 4 patches, then"):
            TABLE.images(wrong)
    with pytest.raises(AcdcError, match=r"'p99999' is neither a label nor a patch .* p0 to p71, .* cat, great_white"):
        TABLE("p1 p99999")
    with pytest.raises(AcdcError, match="image 0 holds patches that are not in the table"):
        TABLE.tokens(IMAGES + 1)
    with pytest.raises(AcdcError, match=r"shape \(3, 8, 4\) .*; this model's are \(3, 4, 8\)"):
        TABLE.tokens(IMAGES.mT)
    with pytest.raises(AcdcError, match="4 x 8 pixels cannot be cut into patches of 3 x 3"):
        PatchTable.of_images(IMAGES, 3, LABELS)
    with pytest.raises(AcdcError, match="0 images; give one or more"):
        PatchTable.of_images(IMAGES[:0], 2, LABELS)
    with pytest.raises(AcdcError, match="of finite pixels"):
        PatchTable.of_images(IMAGES / 0, 2, LABELS)
    for labels in (["a b", "a_b"], ["p0"], ["[CLS]"]):
        with pytest.raises(AcdcError, match="each needs a name of its own"):
            PatchTable.of_images(IMAGES, 2, labels)

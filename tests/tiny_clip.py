"""A random CLIP of a few weights, as transformers writes one to a folder."""

import json
from pathlib import Path

from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

from sfd.seeding import seeded_initialisation

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def write_clip(folder: Path) -> Path:
    """It reads letters; 12 tokens at most, pictures of 32 pixels, embeddings of 8 numbers."""
    folder.mkdir(parents=True)
    tokens = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: place for place, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer.from_pretrained(str(folder)).save_pretrained(str(folder))
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"bos_token_id": len(tokens) - 2, "eos_token_id": len(tokens) - 1, "pad_token_id": len(tokens) - 1}
    config = CLIPConfig(
        text_config=size | ends | {"vocab_size": len(tokens), "max_position_embeddings": 12, "projection_dim": 8},
        vision_config=size | {"image_size": 32, "patch_size": 16, "projection_dim": 8},
        projection_dim=8,
    )
    with seeded_initialisation(0, "tiny clip"):
        CLIPModel(config).save_pretrained(str(folder))
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(str(folder))
    return folder

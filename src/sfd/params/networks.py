"""Sections of the images, of the frozen networks, and of the latents that diffusion trains on."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from sfd.names import DATA_SOURCES, JUDGES, SEMANTIC_ENCODERS, TOKENIZERS
from sfd.params.types import FilePath, Fraction, OneOf, Positive, Precision, Section


class DataParams(Section):
    """The images (stage ``prepare``)."""

    source: Annotated[str, OneOf(DATA_SOURCES)] = Field(description="where images come from")
    root: str = Field(
        "images",
        min_length=1,
        description="where the images are; `~` is the home folder. `folder`: a folder of images, with one subfolder per class, with train/ and "
        "val/ above them, or with no subfolders; `tar`: a folder of *.tar files, or one such file; "
        "`huggingface`: a folder (of `save_to_disk`, or parquet files in the hub's layout) or a name on the hub",
    )
    split: str = Field(
        "train",
        pattern=r"^[\w.-]+(\+[\w.-]+)*$",
        description="splits to read, such as `train` or `train+test` (`huggingface`); they are joined, and `holdout_fraction` is taken from all",
    )
    layout: Literal["classes", "splits", "flat"] | None = Field(
        None,
        description="what the subfolders are (`folder`). `classes`: classes; `splits`: train/ and val/ or test/, with classes or images in them, "
        "and the images of val/ and test/ are held out; `flat`: nothing, all images are of one class; null: `splits` if all subfolders are "
        "named like splits, `flat` if there are none, else `classes`",
    )
    labels: FilePath | None = Field(
        None,
        description="table of the images' classes, .csv, .tsv, .jsonl or .txt (`folder`); null: classes are the subfolders",
    )
    image_column: str = Field(
        "image",
        min_length=1,
        description="column of encoded images (`huggingface`), or of file names in `labels`; there `image` also stands for the usual names, "
        "such as `file_name` or `path`",
    )
    label_column: str = Field(
        "label",
        min_length=1,
        description="column of classes, as numbers or names (`huggingface`, `labels`); in `labels`, `label` also stands for `class` and `category`",
    )
    captions: Literal["auto"] | FilePath | None = Field(
        None,
        union_mode="left_to_right",
        description="what is told of each image, for `diffusion.model.condition: text`. null: nothing; `auto`: what lies with the images: "
        "`NAME.txt` beside them, a caption per line, or a key of `NAME.json`, else a table (`folder`, `tar`); a column (`huggingface`). "
        "A file: a table with one or more lines per image, .csv, .tsv, .jsonl, .json (also COCO's) or .txt (`folder`, `tar`)",
    )
    caption_column: str = Field(
        "caption",
        min_length=1,
        description="column or JSON key of captions, which may hold a list; several are joined by `+`. `caption` also stands for the usual names, "
        "such as `text` or `prompt`, and for `caption_1`, `caption_2`",
    )
    uncaptioned: Literal["error", "drop", "class"] = Field(
        "error",
        description="images without a caption, where others have some. `error`: stop; `drop`: leave them out; `class`: take the name of the class",
    )
    revision: str | None = Field(
        None,
        min_length=1,
        description="commit, tag or branch on the hub (`huggingface`); null: the newest. A commit is looked up once, a tag or branch in every run",
    )
    image_size: int = Field(256, ge=8, le=1024, description="side of the square images, pixels")
    mirror: bool = Field(
        True,
        description="train on horizontally flipped images, too; false where a flipped image is no valid image of its class",
    )
    holdout_fraction: float = Field(
        0.2,
        gt=0.0,
        lt=1.0,
        description="share of every class that is kept from training and used as evaluation reference; not read where split folders say which "
        "images are held out",
    )
    max_rejected_fraction: Fraction = Field(0.01, description="stop when a larger share of the files is refused")
    max_pixels: Positive = Field(100_000_000, description="refuse larger images (decompression bombs), pixels")
    duplicates: Literal["error", "drop"] = Field(
        "error",
        description="images whose content is in both splits. `error`: stop; `drop`: keep the first file and list the others as refused",
    )

    @model_validator(mode="after")
    def _check(self) -> "DataParams":
        for key, source in (("revision", "huggingface"), ("layout", "folder"), ("labels", "folder")):
            value = getattr(self, key)
            if value is not None and self.source != source:
                raise ValueError(
                    f"{key} is '{value}', but source is `{self.source}`, and only `{source}` reads it: set {key} to null"
                )
        self._check_captions()
        if self.layout == "classes" and self.labels is not None:
            raise ValueError(
                f"layout is `classes`, but labels '{self.labels}' gives the classes, too: set one of them to null"
            )
        if self.image_column == self.label_column:
            raise ValueError(
                f"image_column and label_column are both {self.image_column!r}; name the column of images and that of classes"
            )
        return self

    def _check_captions(self) -> None:
        if self.captions is None and self.uncaptioned != "error":
            raise ValueError(
                f"uncaptioned is `{self.uncaptioned}`, but captions is null: set captions to `auto` or a file, or uncaptioned to `error`"
            )
        if isinstance(self.captions, Path) and self.source == "huggingface":
            raise ValueError(
                f"captions is '{self.captions}', but source is `huggingface`, which has them in a column: set captions to `auto`, and name the "
                "column in caption_column"
            )


class TrainingParams(Section):
    """One training of one network."""

    num_steps: Positive = Field(description="optimizer steps")
    batch_size: Positive = Field(256, description="images per optimizer step, over all processes")
    learning_rate: float = Field(1e-4, gt=0.0, le=1.0, description="peak learning rate")
    warmup_steps: int = Field(0, ge=0, description="steps of linear warm-up")
    warmup_from: Fraction | None = Field(
        None,
        description="share of the peak in the first step of the warm-up, which ends at the peak; null: 1 / `warmup_steps`",
    )
    decay: Literal["constant", "cosine"] = Field(
        "constant", description="learning rate after the warm-up; `cosine` falls to `decay_to` in the last step"
    )
    decay_start: Positive | None = Field(
        None,
        description="step in which the fall of `cosine` begins; the rate is constant until then. null: at the end of the warm-up",
    )
    decay_to: Fraction = Field(0.0, description="share of the peak to which `cosine` falls")
    beta2: float = Field(0.999, gt=0.0, lt=1.0, description="second-moment decay of AdamW (the first is 0.9)")
    weight_decay: float = Field(0.0, ge=0.0, description="decoupled weight decay")
    ema_decay: float = Field(
        0.9999,
        ge=0.0,
        lt=1.0,
        description="decay of the averaged weights per step, which start from the initial weights; 0: no averaging",
    )
    max_grad_norm: float | None = Field(None, gt=0.0, description="clip the gradient norm; null: no clipping")
    accumulation_steps: Positive = Field(1, description="micro-batches per optimizer step")
    precision: Precision = Field(
        "auto",
        description="type of products and convolutions; weights, losses and averages stay float32. `auto`: bf16 on GPU, fp32 on CPU",
    )

    @model_validator(mode="after")
    def _check_learning_rate(self) -> Self:
        if self.warmup_from is not None and self.warmup_steps == 0:
            raise ValueError(
                f"warmup_from is {self.warmup_from:g}, but warmup_steps is 0, so there is no warm-up: set warmup_from to null"
            )
        for key, unset, written in (("decay_start", None, "null"), ("decay_to", 0.0, "0")):
            value = getattr(self, key)
            if self.decay == "constant" and value != unset:
                raise ValueError(
                    f"{key} is {value:g}, but decay is `constant`: set decay to `cosine`, or {key} to {written}"
                )
        if self.decay_start is not None and not self.warmup_steps <= self.decay_start < self.num_steps:
            raise ValueError(
                f"decay_start {self.decay_start} must be from warmup_steps {self.warmup_steps} to below num_steps {self.num_steps}: change it, or "
                "set it to null"
            )
        return self


class EncoderParams(Section):
    """The frozen vision encoder whose patch features carry meaning."""

    source: Literal["pretrained", "file", "package", "train", "none"] = Field(
        description="`pretrained`: timm weights by name; `file`: timm weights in a file; `package`: those of an installed package (extra "
        "`offline`); `train`: a small ViT, trained here on class labels; `none`: no encoder, where nothing needs features "
        "(`semantic.kind: none` and `latents.store_features: false`)"
    )
    name: str = Field(
        "vit_base_patch14_reg4_dinov2.lvd142m",
        description="timm model, a transformer or a convolutional network (`pretrained`, `file` and `package`)",
    )
    file: FilePath | None = Field(
        None, description="weights file for `file` (.safetensors, or .pth without pickled objects)"
    )
    input_size: int = Field(
        224, ge=8, le=1024, description="side of the encoder's input, pixels; images are resized bicubically"
    )
    patch_size: Positive = Field(
        14,
        description="side of one patch, pixels; of a convolutional network: by how much its last feature map is smaller than its input "
        "(`train`; else checked against the model)",
    )
    width: Positive = Field(768, description="channels of the ViT (`train`)")
    depth: Positive = Field(12, description="blocks of the ViT (`train`)")
    num_heads: Positive = Field(12, description="attention heads of the ViT (`train`)")
    training: TrainingParams | None = Field(None, description="needed by `train`")


class AlignmentParams(Section):
    """Alignment of the texture latent with the encoder's patch features (``train``), the mechanism of VA-VAE."""

    weight: float = Field(
        0.0,
        ge=0.0,
        description="weight of both terms together, beside the errors of pixels; 0: none. Published (arXiv 2501.01423): 0.1, adaptive",
    )
    cosine_weight: float = Field(
        1.0, ge=0.0, description="of the term that compares each position of the latent with its feature"
    )
    cosine_margin: float = Field(
        0.5, ge=0.0, le=2.0, description="how far below 1 the cosine of the two may stay at no cost"
    )
    distance_weight: float = Field(
        1.0, ge=0.0, description="of the term that compares the cosines between all positions of an image"
    )
    distance_margin: float = Field(0.25, ge=0.0, le=2.0, description="by how much these may differ at no cost")
    adaptive: bool = Field(
        True,
        description="multiply the weight by the ratio of the gradients' lengths at the encoder's last layer, that of the errors of pixels "
        "over that of the alignment, in every step",
    )

    @model_validator(mode="after")
    def _check_terms(self) -> Self:
        if self.weight > 0.0 and self.cosine_weight == self.distance_weight == 0.0:
            raise ValueError(
                f"weight is {self.weight:g}, but cosine_weight and distance_weight are 0: raise one of them, or set weight to 0"
            )
        return self


class TextureVaeParams(Section):
    """The frozen autoencoder that makes texture latents and decodes them to pixels."""

    source: Annotated[
        str,
        OneOf(
            TOKENIZERS,
            {
                "pretrained": "diffusers AutoencoderKL by name",
                "file": "one in a folder",
                "train": "one that is trained here",
            },
        ),
    ] = Field(description="where it comes from")
    name: str | None = Field(None, description="hub name (`pretrained`)")
    file: FilePath | None = Field(
        None,
        description="folder in diffusers layout (config.json, *.safetensors; AutoencoderKL or AutoencoderKLFlux2), or one that this stage wrote, "
        "for `file`",
    )
    block_size: int = Field(
        8, ge=2, le=32, description="side of a pixel block, which becomes one latent position (`pca`)"
    )
    channels: tuple[Positive, ...] = Field(
        (128, 128, 256, 256, 512),
        strict=False,  # YAML has lists, not tuples; the numbers inside stay strict
        min_length=1,
        description="width of each resolution, halved from one to the next (`train`)",
    )
    layers_per_block: Positive = Field(2, description="residual layers per resolution (`train`)")
    latent_channels: Positive = Field(32, description="channels of the texture latent (`train` and `pca`)")
    kl_weight: float = Field(1e-6, ge=0.0, description="weight of the KL term (`train`)")
    residual_width: Positive = Field(
        96, description="channels of the network that improves decoded pixels (`pca` with `training`)"
    )
    perceptual_weight: float = Field(
        0.0,
        ge=0.0,
        description="weight of 1 - cosine between the encoder's patch features of an image and of its reconstruction, beside the errors of pixels",
    )
    adversarial_weight: float = Field(
        0.0, ge=0.0, description="weight of the hinge loss of a patch discriminator, which is trained beside"
    )
    alignment: AlignmentParams = Field(
        default_factory=lambda: AlignmentParams.model_validate({}),
        description="alignment of the latent with the encoder's patch features of the same image",
    )
    training: TrainingParams | None = Field(
        None,
        description="needed by `train`. `pca`: the training of a network that removes the edges of blocks; null: none",
    )

    @property
    def is_trained(self) -> bool:
        """Whether something of it is trained here step by step."""
        return self.source == "train" or (self.is_fitted and self.training is not None)

    @property
    def needs_encoder(self) -> bool:
        """Whether a term of its loss needs the encoder's features."""
        return self.perceptual_weight > 0.0 or self.alignment.weight > 0.0

    @property
    def is_fitted(self) -> bool:
        """Whether it is a tokenizer that is fitted to the training images."""
        return self.source in TOKENIZERS

    @property
    def factor(self) -> int | None:
        """Pixels per latent position along one side; None where that is known only once the weights are loaded."""
        if self.source == "train":
            return int(2 ** (len(self.channels) - 1))
        return self.block_size if self.is_fitted else None


class JudgeParams(Section):
    """A network whose features score samples. The first one also tells the classes, and is never the encoder."""

    kind: Annotated[str, OneOf(JUDGES)] = Field(description="the network")
    source: Literal["pretrained", "file", "package", "train"] = Field(
        description="where weights come from. `pretrained`: downloaded (`inception`, `timm`, `clip`); `file`: a file (`inception`, `timm`) or folder "
        "(`clip`); "
        "`package`: an installed package (`timm`, extra `offline`); `train`: trained here (`resnet`)"
    )
    name: str = Field(
        pattern=r"^\w[\w.-]*$", description="name in metric keys, as in `fd_NAME`; Inception must be called `inception`"
    )
    model: str | None = Field(
        None,
        min_length=1,
        description="timm model (`timm`); another network, or other weights, than the encoder's. Name of a CLIP on the model hub (`clip`)",
    )
    input_size: int = Field(
        224, ge=8, le=1024, description="side of the network's input, pixels; images are resized bicubically (`timm`)"
    )
    file: FilePath | None = Field(
        None,
        description="weights file for `file` (`inception`: torch-fidelity's .pth; `timm`: .safetensors, or .pth without pickled objects; `clip`: "
        "folder as transformers writes it)",
    )
    channels: tuple[Positive, ...] = Field(
        (16, 32, 64, 64),
        strict=False,
        min_length=4,
        max_length=4,
        description="width of each ResNet stage (`train`); the last is the number of features",
    )
    training: TrainingParams | None = Field(None, description="needed by `train`")


class FeaturesParams(Section):
    """Patch features for the training of the semantic VAE."""

    max_images: Positive = Field(
        10_000, description="most training images whose features are stored (those of all of ImageNet take 0.5 TB)"
    )
    shard_size: Positive = Field(1000, description="images per file")
    crop: Literal["image", "centre"] = Field(
        "image",
        description="what the encoder sees. `image`: the image of side `data.image_size`, as stage `latents` shows it; `centre`: the file with "
        "its short side resized bicubically to 8/7 of `encoder.input_size`, and of that the centre (256 and 224 pixels in the published training "
        "of SemVAE)",
    )
    mirror: bool = Field(
        True, description="features of the flipped images, too, where `data.mirror` has them (the publication: false)"
    )


class SemanticParams(Section):
    """From patch features to the semantic latent."""

    kind: Annotated[str, OneOf(SEMANTIC_ENCODERS, {"none": "no semantic channels"})] = Field(
        "semvae", description="what makes semantic latents"
    )
    source: Literal["train", "file"] = Field(
        "train",
        description="`train`: fitted or trained here on the features; `file`: one that `sfd import` or this stage wrote. It is only measured on the "
        "features, of at most 1,000 images",
    )
    file: FilePath | None = Field(
        None,
        description="folder of `sfd import --kind semantic-vae`, or the `results/semantic/model` of another project, for `file`. Its widths must be "
        "those of this section",
    )
    latent_channels: Positive = Field(16, description="channels of the semantic latent (C_sem)")
    width: Positive = Field(768, description="width of the transformer (`semvae`)")
    depth: Positive = Field(4, description="blocks of the encoder, and of the decoder (`semvae`)")
    num_heads: Positive = Field(12, description="attention heads (`semvae`)")
    kl_weight: float = Field(
        1e-7,
        ge=0.0,
        description="weight of the KL term (`semvae`), which is summed over positions and channels and averaged over images",
    )
    cosine_over: Literal["channels", "tokens"] = Field(
        "channels",
        description="axis of the cosine term (`semvae`). `channels`: 1 - cosine of the feature vectors of each token, the quality that the "
        "authors report; `tokens`: for each channel, 1 - cosine of its values over all tokens, as their training code has it, perhaps unintended",
    )
    training: TrainingParams | None = Field(None, description="needed by `semvae` with source `train`")


class LatentsParams(Section):
    """Composite latents: the training set of diffusion."""

    shard_size: Positive = Field(10_000, description="images per file")
    statistics_images: Positive = Field(
        10_000, description="images from which channel means and standard deviations are computed"
    )
    store_features: bool = Field(
        True,
        description="keep the encoder's features beside the latents, for REPA (ImageNet: 0.5 TB, and 0.5 TB again for the flipped images)",
    )
    semantic_posterior: Literal["mean", "sample"] = Field(
        "mean",
        description="the semantic latent of an image: the `mean` of SemVAE's posterior, or a `sample` of it (the publication). Principal components "
        "have no posterior",
    )
    quadrants: bool = Field(
        False,
        description="encode each quarter of an image by itself, by the vision encoder and the semantic encoder, and join what they give on one "
        "grid (the publication at 512 pixels: quarters of 256, each resized to 224); false: the whole image at once",
    )

    @property
    def tiles(self) -> int:
        """Parts along one side of an image that are encoded one by one."""
        return 2 if self.quadrants else 1

    @property
    def draws_semantics(self) -> bool:
        """Whether the semantic latent is a sample of the posterior."""
        return self.semantic_posterior == "sample"

"""Rules between the options for words and others."""

from sfd.params.schema import Params


def check_words(params: Params) -> None:
    """Options for words are of a model that is told words."""
    model, sample = params.diffusion.model, params.sample
    negative = sample.guidance.negative_prompt
    if model.condition != "text":
        given = {
            "diffusion.model.text_attention": model.text_attention != "cross",
            "sample.prompts": sample.prompts is not None,
            "sample.guidance.negative_prompt": negative is not None,
        }
        for name, is_given in given.items():
            if is_given:
                reset = "cross" if name.endswith("attention") else "null"
                raise ValueError(
                    f"{name} is for a model that is told words, but diffusion.model.condition is `{model.condition}`: set it to {reset}, or the "
                    "condition to `text`"
                )
        return
    if negative is not None and sample.guidance.kind not in ("cfg", "path_drop"):
        raise ValueError(
            f"sample.guidance.negative_prompt is what `cfg` and `path_drop` steer away from, but the kind is `{sample.guidance.kind}`: set it to "
            "null, or choose one of these kinds"
        )

"""`download_model`: a model of the Hugging Face hub. Importing this imports huggingface_hub."""

from huggingface_hub import snapshot_download

WEIGHTS_AND_TOKENIZER = ["*.json", "*.pt", "*.bin", "*.txt", "*.model", "*.pth", "*.safetensors", "original/*"]


def download_model(
    model_id: str = "meta-llama/Meta-Llama-3.1-8B-Instruct",
    revision: str = "main",
    model_path: str = ".cache",
    use_auth_token: bool | str = True,
) -> str:
    """Download weights and tokenizer of `model_id` below `model_path`; the folder they are in. `use_auth_token` is a token, or
    whether the one is used that this machine has logged in with. Raises what `snapshot_download` raises."""
    return snapshot_download(
        repo_id=model_id,
        revision=revision,
        allow_patterns=WEIGHTS_AND_TOKENIZER,
        cache_dir=model_path,
        token=use_auth_token,
    )

"""What of a config nobody but its owner may read: by the names of keys, and in addresses."""

import re
from typing import Any

_WORDS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|[-.\s]")
_SECRET = re.compile(
    r"(tokens?|secrets?|passwords?|passwd|passphrase|credentials?|authorization)$|(^|_)(pwd|pass|o?auth|cookies?|dsn)$"
    r"|(api|access|secret|private|signing|encryption|account|license|shared|master|ssh)_?keys?$"
)
_HARMLESS = re.compile(
    r"(^|_)((pad|cls|sep|mask|unk|bos|eos|special|max|min|num|n|per)_tokens?|(low|high|band|all)_pass)$"
)
_IN_ADDRESS = re.compile(r"(?<=://)(?:[^/\s:]*:\S*|[^/\s]+)(?=@)")  # a password may hold @ and /
_QUERY = re.compile(r"([?&]([\w.-]+)=)[^&\s#'\"]+")
_SIGNED = re.compile(r"(^|-)(key|sig|signature)$", re.IGNORECASE)
_VALUE = r"'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\"|\[[^\]]*\]|\{[^}]*\}|(?:\\.|[^\s,}\]\\])+"
_PAIR = re.compile(rf"((?<![\w.@-])([\w.@-]+)['\"]?(?:=|:(?!//)\s*))({_VALUE})")


def is_secret(key: str) -> bool:
    """Whether a key is one whose value is hidden.

    >>> [key for key in ("apiKey", "db_pwd", "author", "max_tokens", "tokenizer") if is_secret(key)]
    ['apiKey', 'db_pwd']
    """
    words = _WORDS.sub("_", key).lower()
    return bool(_SECRET.search(words)) and not _HARMLESS.search(words)


def hidden(tree: Any) -> Any:
    """A plain config without its secrets: values of keys such as ``token``, and what addresses hold of them.

    >>> hidden({"api_key": "x", "max_tokens": 3, "root": "db://me:x@host/"})
    {'api_key': '***', 'max_tokens': 3, 'root': 'db://***@host/'}
    """
    if isinstance(tree, dict):
        return {key: "***" if _hides(str(key), value) else hidden(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [hidden(value) for value in tree]
    if not isinstance(tree, str):
        return tree
    text = re.sub(r"\bBearer\s+[^\s'\"]+", "Bearer ***", _IN_ADDRESS.sub("***", tree))
    return _QUERY.sub(
        lambda found: f"{found[1]}***" if is_secret(found[2]) or _SIGNED.search(found[2]) else found[0], text
    )


def masked(text: str) -> str:
    """A command line's override, or a message that holds some, without secrets.

    >>> masked("+store.api_key=x dim=3")
    '+store.api_key=*** dim=3'
    """

    def mask(found: "re.Match[str]") -> str:
        if any(_hides(part, found[3]) for part in found[2].split(".")):
            return f"{found[1]}***"
        return found[1] + _PAIR.sub(mask, found[3])

    shown: str = hidden(_PAIR.sub(mask, text))
    return shown


def _hides(key: str, value: Any) -> bool:
    if not value or isinstance(value, bool) or str(value) in ("null", "true", "false"):
        return False
    return is_secret(key) and not (key.endswith("tokens") and str(value).isdigit())

"""What is hidden of a config and of a command line, and what stays readable. Covers avrec.run.redact."""

from typing import Any

import pytest

from avrec.run.redact import hidden, is_secret, masked

SECRET = """api_key apiKey APIKey apikey X-Api-Key token accessToken hf_token tokens secret client_secret secret_key
private_key aws_secret_access_key password db_password passwd pwd pass auth oauth Authorization credentials dsn
cookie privateKey access_keys"""
HARMLESS = """monitor tokenizer max_tokens num_tokens pad_token author authors authority key keys keyboard monkey
secretary compass low_pass passes user_id tokens_per_batch dim password_length public_key pwd_dir"""


def test_keys_of_secrets_and_others_are_told_apart() -> None:
    assert [key for key in SECRET.split() if not is_secret(key)] == []
    assert [key for key in HARMLESS.split() if is_secret(key)] == []


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ({"tokens": ["x", "y"], "text_tokens": 16, "token": None}, {"tokens": "***", "text_tokens": 16, "token": None}),
        ({"headers": {"Authorization": "Bearer x"}}, {"headers": {"Authorization": "***"}}),
        (["Authorization: Bearer x.y-z"], ["Authorization: Bearer ***"]),
        ("postgresql://me:p@ss@host/db", "postgresql://***@host/db"),
        ("https://me:p/a:s@host/db", "https://***@host/db"),
        ("s3://only-a-token@host/x", "s3://***@host/x"),
        ("https://host:80/a?token=x&dim=3&api_key=y#z", "https://host:80/a?token=***&dim=3&api_key=***#z"),
        ("https://host/a?X-Amz-Signature=x&v=1", "https://host/a?X-Amz-Signature=***&v=1"),
        ("https://host:5000/path", "https://host:5000/path"),
        ("https://host/pkg/@scope/x", "https://host/pkg/@scope/x"),
        ("me@host", "me@host"),
        ("{title} token: {plot}", "{title} token: {plot}"),
    ],
)
def test_a_config_is_shown_without_its_secrets(given: Any, shown: Any) -> None:
    assert hidden(given) == shown


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("+logger.wandb.settings.api_key=x", "+logger.wandb.settings.api_key=***"),
        (r"+password=p&a\ ss", "+password=***"),
        ("data.root=https://host/?dim=3&token=p", "data.root=https://host/?dim=3&token=***"),
        ("++auth.user=me", "++auth.user=***"),
        ("+tokens=[a,b]", "+tokens=***"),
        (r"+store.password='a b\'c'", "+store.password=***"),
        (
            "+store={user:me,password:x,headers:{Authorization:'Bearer x'}}",
            "+store={user:me,password:***,headers:{Authorization:***}}",
        ),
        ("data.root=db://me:x@host/", "data.root=db://***@host/"),
        ("text.max_tokens=16 dim=3,4 monitor=val/ndcg@10", "text.max_tokens=16 dim=3,4 monitor=val/ndcg@10"),
        ("user_tower.attention.dropout=interval(0,0.5)", "user_tower.attention.dropout=interval(0,0.5)"),
        ("Unknown key api_key=x.", "Unknown key api_key=***"),
    ],
)
def test_an_override_is_shown_without_its_secrets(given: str, shown: str) -> None:
    assert masked(given) == shown

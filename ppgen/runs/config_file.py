"""Configuration files: YAML with plain values only, and no way to name anything outside of ppgen's own tables."""

from pathlib import Path
from typing import Any

import yaml

from ppgen.utils.regular_files import read_bytes

__all__ = ["parse_config"]

MOST_BYTES = 100_000  # a configuration has about two thousand


def parse_config(path: Path) -> dict[str, Any]:
    """Reads a YAML mapping of plain values.

    Args:
        path: The file.

    Returns:
        Its contents.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not YAML in UTF-8, not a mapping, or has tags, anchors, aliases or keys that are no
            text or stand twice.
    """
    try:
        config = yaml.load(read_bytes(path, most=MOST_BYTES).decode(), PlainLoader)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: the file is not text in UTF-8: {error}") from error
    except RecursionError as error:
        raise ValueError(f"{path}: the file is nested too deeply") from error
    except (yaml.YAMLError, _ValueOfScalarError) as error:
        raise ValueError(f"{path}: the file is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path}: expected a mapping from options to values, got {type(config).__name__}")
    return config


class _ValueOfScalarError(Exception):
    """A scalar looks like a number or a date and is none, such as ``0x_`` and ``2000-99-99``."""


class PlainLoader(yaml.SafeLoader):
    """PyYAML's safe loader without what a configuration does not need.

    Tags name types, aliases let a few lines stand for gigabytes, and of a key that stands twice one value is lost.
    """

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Composes a node that has neither a tag nor an anchor."""
        event: Any = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None or event.tag is not None:
            raise yaml.composer.ComposerError(
                None, None, "tags, anchors and aliases are not allowed here", event.start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        """Constructs a mapping whose keys are text, each once."""
        keys = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:str":
                raise yaml.constructor.ConstructorError(None, None, "expected the name of an option", key.start_mark)
            if key.value in keys:
                raise yaml.constructor.ConstructorError(None, None, "this key stands twice", key.start_mark)
            keys.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        """Constructs a value."""
        try:
            return super().construct_object(node, deep)
        except (ValueError, OverflowError) as error:
            raise _ValueOfScalarError(f"{node.value!r}: {error}") from error

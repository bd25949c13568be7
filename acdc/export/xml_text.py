"""How a format in XML is written and read: escaped, a line an element, without document types."""

import xml.etree.ElementTree as ET
from collections.abc import Mapping
from xml.sax.saxutils import quoteattr

from acdc.errors import AcdcError


def tag(name: str, attributes: Mapping[str, str], *, close: bool = True) -> str:
    """An element without content, or its opening."""
    return f"<{name}{''.join(f' {key}={quoteattr(value)}' for key, value in attributes.items())}{'/' * close}>"


def parse_xml(text: str, source: str) -> ET.Element:
    """The root. A document type is refused: nothing here needs one, and its entities can fill the memory."""
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise AcdcError(f"{source} declares a document type, which acdc neither writes nor reads")
    try:
        return ET.fromstring(text)
    except (ET.ParseError, ValueError) as error:
        raise AcdcError(f"{source} is not XML: {error}. It may be cut off or changed by hand") from error


def local_name(element: ET.Element) -> str:
    """The name of an element without its namespace."""
    return element.tag.rpartition("}")[2]

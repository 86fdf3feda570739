//! Limits of requests.

use std::time::Duration;

/// Bytes of the XML body of a request.
pub const XML_BODY_BYTES_MAX: usize = 256 << 10;

/// Elements within each other in an XML body, the outermost included.
pub const XML_DEPTH_MAX: usize = 32;

/// Elements and attributes of an XML body, all together.
pub const XML_NODES_MAX: usize = 4096;

/// Attributes of one element, declarations of namespaces included.
pub const XML_ATTRIBUTES_MAX: usize = 64;

/// Declarations of namespaces in force at one place of an XML body.
pub const XML_NAMESPACES_MAX: usize = 64;

/// Bytes of one namespace of an XML body, as the document writes it. One declaration is of use to every element of the
/// body, so that what each element does with it counts as often.
pub const XML_NAMESPACE_BYTES_MAX: usize = 1 << 10;

/// Memory that the parsing of one XML body takes at its peak, with the elements that come of it.
pub const XML_MEMORY_BYTES_MAX: usize = 8 << 20;

/// Properties that one PROPFIND or PROPPATCH names.
pub const PROPERTIES_NAMED_MAX: usize = 256;

/// Bytes of all names that one PROPFIND or PROPPATCH names, with their namespaces. The response repeats them for each entry.
pub const PROPERTY_NAMES_BYTES_MAX: usize = 16 << 10;

/// Dead properties of one entry.
pub const DEAD_PROPERTIES_MAX: usize = 64;

/// Bytes of one dead property as XML.
pub const DEAD_PROPERTY_BYTES_MAX: usize = 8 << 10;

/// Bytes of a header field that this crate parses.
pub const HEADER_BYTES_MAX: usize = 16 << 10;

/// Conditions of an `If` header, in all its lists.
pub const IF_CONDITIONS_MAX: usize = 256;

/// Entity tags of one header field.
pub const ENTITY_TAGS_MAX: usize = 256;

/// Ranges of one request. A request with more gets the whole file.
pub const RANGES_MAX: usize = 16;

/// How long a lock lasts if its request names no time.
pub const LOCK_TIME_DEFAULT: Duration = Duration::from_secs(10 * 60);

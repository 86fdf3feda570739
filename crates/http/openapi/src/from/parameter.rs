//! Parameters: how a request holds their values (OpenAPI 3.1 section 4.8.12, RFC 6570).

use alknet_call::CallError;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC};
use serde_json::{Map, Value};

use super::byte_budget::RequestByteBudget;
use super::error::DocumentError;
use super::refs::OpenApiSourceDocument;

/// All characters except those without a special meaning in URIs (RFC 3986 section 2.3).
pub(super) const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// Like [`ESCAPED`], but without the reserved characters of a query, for documents that allow them. Characters that
/// would end the value or the query stay escaped.
const RESERVED: &AsciiSet = &ESCAPED
    .remove(b':')
    .remove(b'/')
    .remove(b'?')
    .remove(b'@')
    .remove(b'!')
    .remove(b'$')
    .remove(b'\'')
    .remove(b'(')
    .remove(b')')
    .remove(b'*')
    .remove(b',')
    .remove(b';');

/// The part of a request that holds a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum ParameterLocation {
    Path,
    Query,
    Header,
    Cookie,
}

impl ParameterLocation {
    pub(super) fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "path" => Self::Path,
            "query" => Self::Query,
            "header" => Self::Header,
            "cookie" => Self::Cookie,
            _ => return None,
        })
    }

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Path => "path",
            Self::Query => "query",
            Self::Header => "header",
            Self::Cookie => "cookie",
        }
    }
}

/// How an array or an object is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ParameterStyle {
    DeepObject,
    Form,
    /// As JSON, for parameters that a document describes by `content`.
    Json,
    Label,
    Matrix,
    PipeDelimited,
    Simple,
    SpaceDelimited,
}

impl ParameterStyle {
    pub(super) fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "deepObject" => Self::DeepObject,
            "form" => Self::Form,
            "label" => Self::Label,
            "matrix" => Self::Matrix,
            "pipeDelimited" => Self::PipeDelimited,
            "simple" => Self::Simple,
            "spaceDelimited" => Self::SpaceDelimited,
            _ => return None,
        })
    }
}

/// A parameter of an operation.
#[derive(Clone, Debug)]
pub(super) struct Parameter<'a> {
    /// The name that the server uses.
    pub(super) name: String,
    /// The name of the input's member.
    pub(super) member: String,
    pub(super) location: ParameterLocation,
    pub(super) writing: ParameterSerialization,
    pub(super) is_required: bool,
    pub(super) schema: Option<&'a Value>,
    pub(super) description: Option<&'a str>,
}

/// How a value is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ParameterSerialization {
    pub(super) style: ParameterStyle,
    pub(super) explode: bool,
    pub(super) reserved: bool,
}

impl ParameterSerialization {
    pub(super) const FORM: Self = Self {
        style: ParameterStyle::Form,
        explode: true,
        reserved: false,
    };

    /// The serialization that `node`, a parameter or an encoding, declares. The defaults depend on the location.
    pub(super) fn from_node(node: &Value, location: ParameterLocation) -> Self {
        let usual = match location {
            ParameterLocation::Path | ParameterLocation::Header => ParameterStyle::Simple,
            ParameterLocation::Query | ParameterLocation::Cookie => ParameterStyle::Form,
        };
        let style = node
            .get("style")
            .and_then(Value::as_str)
            .and_then(ParameterStyle::parse);
        let style = style.unwrap_or(usual);
        let flag = |name: &str| node.get(name).and_then(Value::as_bool);
        Self {
            style,
            // Only the style `form` has the default `true` (OpenAPI 3.1, Parameter Object).
            explode: flag("explode").unwrap_or(style == ParameterStyle::Form),
            reserved: flag("allowReserved").unwrap_or(false),
        }
    }
}

impl<'a> Parameter<'a> {
    /// The parameter that `node` describes; `None` for one that a caller may not set.
    pub(super) fn read(
        document: &'a OpenApiSourceDocument,
        node: &'a Value,
        at: &str,
    ) -> Result<Option<Self>, DocumentError> {
        let node = document.resolve(node, at)?;
        let text = |name: &str| node.get(name).and_then(Value::as_str);
        let name = text("name").ok_or_else(|| DocumentError::shape(at, "a parameter"))?;
        let location = text("in").and_then(ParameterLocation::parse);
        let location = location
            .ok_or_else(|| DocumentError::shape(at, "in a path, a query, a header or a cookie"))?;
        if location == ParameterLocation::Header && !is_free_header(name) {
            return Ok(None);
        }
        let mut writing = ParameterSerialization::from_node(node, location);
        let mut schema = node.get("schema");
        if let Some(content) = node.get("content").and_then(Value::as_object) {
            writing.style = ParameterStyle::Json;
            // This object has exactly one member (OpenAPI 3.1, Parameter Object).
            schema = content
                .values()
                .next()
                .and_then(|media| media.get("schema"));
        }
        Ok(Some(Self {
            name: name.to_owned(),
            member: name.to_owned(),
            location,
            writing,
            // A parameter in a path is always required (OpenAPI 3.1, Parameter Object).
            is_required: location == ParameterLocation::Path
                || node.get("required").and_then(Value::as_bool) == Some(true),
            schema,
            description: text("description"),
        }))
    }
}

/// Whether a caller may set this header: the client does not set it itself, and it carries no credential (OpenAPI 3.1
/// section 4.8.12.1).
fn is_free_header(name: &str) -> bool {
    const OWN: [&str; 16] = [
        "accept",
        "authorization",
        "connection",
        "content-length",
        "content-type",
        "cookie",
        "expect",
        "host",
        "keep-alive",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "user-agent",
    ];
    let name = name.to_ascii_lowercase();
    http::HeaderName::from_bytes(name.as_bytes()).is_ok() && !OWN.contains(&name.as_str())
}

/// Writes the pairs of a query, a form or a cookie header.
#[derive(Debug)]
pub(super) struct PairWriter<'r> {
    text: String,
    budget: &'r mut RequestByteBudget,
    between: &'static str,
}

/// The name of a pair: a member `c` of `a[b]` is `a[b][c]`. It is a list of names instead of their text, because an
/// input has a name once for all values below it.
#[derive(Clone, Copy)]
enum Name<'a> {
    Whole(&'a str),
    Member(&'a Self, &'a str),
    Item(&'a Self, usize),
}

impl<'r> PairWriter<'r> {
    /// A writer without pairs. It writes `between` between two of them.
    pub(super) fn new(budget: &'r mut RequestByteBudget, between: &'static str) -> Self {
        Self {
            text: String::new(),
            budget,
            between,
        }
    }

    pub(super) fn finish(self) -> String {
        self.text
    }

    /// Adds the pairs of a value.
    pub(super) fn add(
        &mut self,
        name: &str,
        value: &Value,
        writing: ParameterSerialization,
    ) -> Result<(), CallError> {
        let set = if writing.reserved { RESERVED } else { ESCAPED };
        let whole = Name::Whole(name);
        match (writing.style, value) {
            // A parameter that is `null` counts as absent.
            (_, Value::Null) => Ok(()),
            (ParameterStyle::Json, value) => self.json(name, value, set),
            (ParameterStyle::DeepObject, Value::Object(_) | Value::Array(_)) => {
                self.deep(&whole, value, set)
            }
            (ParameterStyle::SpaceDelimited, Value::Array(list)) => {
                self.joined(name, list, " ", set)
            }
            (ParameterStyle::PipeDelimited, Value::Array(list)) => {
                self.joined(name, list, "|", set)
            }
            (_, Value::Array(list)) if writing.explode => {
                let mut each = list.iter();
                each.try_for_each(|one| self.pair(&whole, one, set))
            }
            (_, Value::Array(list)) => self.joined(name, list, ",", set),
            // The names of the members replace the parameter's name (RFC 6570 section 3.2.8).
            (_, Value::Object(members)) if writing.explode => {
                let mut each = members.iter().filter(|(_, value)| !value.is_null());
                each.try_for_each(|(name, value)| self.pair(&Name::Whole(name), value, set))
            }
            (_, Value::Object(members)) => self.members(name, members, set),
            (_, value) => self.pair(&whole, value, set),
        }
    }

    /// Adds a value as JSON.
    pub(super) fn json(
        &mut self,
        name: &str,
        value: &Value,
        set: &'static AsciiSet,
    ) -> Result<(), CallError> {
        self.begin(&Name::Whole(name))?;
        let text = self.budget.json(value)?;
        self.budget.push_escaped(&mut self.text, &text, set)
    }

    /// Adds pairs such as `a[b][c]=d`, to any depth.
    fn deep(
        &mut self,
        name: &Name<'_>,
        value: &Value,
        set: &'static AsciiSet,
    ) -> Result<(), CallError> {
        match value {
            Value::Null => Ok(()),
            Value::Object(members) => members
                .iter()
                .try_for_each(|(member, value)| self.deep(&Name::Member(name, member), value, set)),
            Value::Array(list) => list
                .iter()
                .enumerate()
                .try_for_each(|(at, value)| self.deep(&Name::Item(name, at), value, set)),
            value => self.pair(name, value, set),
        }
    }

    fn pair(
        &mut self,
        name: &Name<'_>,
        value: &Value,
        set: &'static AsciiSet,
    ) -> Result<(), CallError> {
        self.begin(name)?;
        self.scalar(value, set)
    }

    fn joined(
        &mut self,
        name: &str,
        list: &[Value],
        by: &str,
        set: &'static AsciiSet,
    ) -> Result<(), CallError> {
        self.begin(&Name::Whole(name))?;
        for (at, one) in list.iter().enumerate() {
            if at > 0 {
                self.budget.push_escaped(&mut self.text, by, set)?;
            }
            self.scalar(one, set)?;
        }
        Ok(())
    }

    /// Adds an object as one value, in which names and values alternate.
    fn members(
        &mut self,
        name: &str,
        members: &Map<String, Value>,
        set: &'static AsciiSet,
    ) -> Result<(), CallError> {
        self.begin(&Name::Whole(name))?;
        for (at, (member, value)) in members.iter().enumerate() {
            if at > 0 {
                self.budget.push_escaped(&mut self.text, ",", set)?;
            }
            self.budget.push_escaped(&mut self.text, member, set)?;
            self.budget.push_escaped(&mut self.text, ",", set)?;
            self.scalar(value, set)?;
        }
        Ok(())
    }

    /// Writes the part of a pair before its value.
    fn begin(&mut self, name: &Name<'_>) -> Result<(), CallError> {
        if !self.text.is_empty() {
            self.budget.push(&mut self.text, self.between)?;
        }
        self.name(name)?;
        self.budget.push(&mut self.text, "=")
    }

    fn name(&mut self, name: &Name<'_>) -> Result<(), CallError> {
        // The text of the index must live longer than the match.
        let index;
        let (up, own) = match *name {
            Name::Whole(name) => return self.budget.push_escaped(&mut self.text, name, ESCAPED),
            Name::Member(up, member) => (up, member),
            Name::Item(up, at) => {
                index = at.to_string();
                (up, index.as_str())
            }
        };
        self.name(up)?;
        self.budget.push_escaped(&mut self.text, "[", ESCAPED)?;
        self.budget.push_escaped(&mut self.text, own, ESCAPED)?;
        self.budget.push_escaped(&mut self.text, "]", ESCAPED)
    }

    fn scalar(&mut self, value: &Value, set: &'static AsciiSet) -> Result<(), CallError> {
        let text = self.budget.scalar(value)?;
        self.budget.push_escaped(&mut self.text, &text, set)
    }
}

/// The text of a value, with or without escapes.
struct Text<'r> {
    text: String,
    budget: &'r mut RequestByteBudget,
    escapes: bool,
}

impl<'r> Text<'r> {
    fn new(budget: &'r mut RequestByteBudget, escapes: bool) -> Self {
        Self {
            text: String::new(),
            budget,
            escapes,
        }
    }

    /// Adds a delimiter, which is never escaped.
    fn mark(&mut self, text: &str) -> Result<(), CallError> {
        self.budget.push(&mut self.text, text)
    }

    fn push(&mut self, text: &str) -> Result<(), CallError> {
        match self.escapes {
            true => self.budget.push_escaped(&mut self.text, text, ESCAPED),
            false => self.mark(text),
        }
    }

    fn json(&mut self, value: &Value) -> Result<(), CallError> {
        let text = self.budget.json(value)?;
        self.push(&text)
    }

    fn scalar(&mut self, value: &Value) -> Result<(), CallError> {
        let text = self.budget.scalar(value)?;
        self.push(&text)
    }

    fn list(&mut self, list: &[Value], by: &str) -> Result<(), CallError> {
        for (at, one) in list.iter().enumerate() {
            if at > 0 {
                self.mark(by)?;
            }
            self.scalar(one)?;
        }
        Ok(())
    }

    fn members(
        &mut self,
        members: &Map<String, Value>,
        equals: &str,
        by: &str,
    ) -> Result<(), CallError> {
        for (at, (name, value)) in members.iter().enumerate() {
            if at > 0 {
                self.mark(by)?;
            }
            self.push(name)?;
            self.mark(equals)?;
            self.scalar(value)?;
        }
        Ok(())
    }

    fn name_and_equals(&mut self, name: &str) -> Result<(), CallError> {
        self.mark(";")?;
        self.push(name)?;
        self.mark("=")
    }

    fn label(&mut self, value: &Value, explode: bool) -> Result<(), CallError> {
        let by = if explode { "." } else { "," };
        let equals = if explode { "=" } else { "," };
        // A label begins with a dot (RFC 6570 section 3.2.5).
        self.mark(".")?;
        match value {
            Value::Array(values) => self.list(values, by),
            Value::Object(value) => self.members(value, equals, by),
            value => self.scalar(value),
        }
    }

    fn matrix(&mut self, name: &str, value: &Value, explode: bool) -> Result<(), CallError> {
        match value {
            Value::Array(values) if explode => values.iter().try_for_each(|one| {
                self.name_and_equals(name)?;
                self.scalar(one)
            }),
            // The names of the members replace the parameter's name (RFC 6570 section 3.2.7).
            Value::Object(value) if explode => {
                self.mark(";")?;
                self.members(value, "=", ";")
            }
            value => {
                self.name_and_equals(name)?;
                match value {
                    Value::Array(values) => self.list(values, ","),
                    Value::Object(value) => self.members(value, ",", ","),
                    value => self.scalar(value),
                }
            }
        }
    }

    fn simple(&mut self, value: &Value, explode: bool) -> Result<(), CallError> {
        let equals = if explode { "=" } else { "," };
        match value {
            Value::Array(values) => self.list(values, ","),
            Value::Object(value) => self.members(value, equals, ","),
            value => self.scalar(value),
        }
    }
}

/// A value as an escaped part of a path; `None` if it would be empty.
pub(super) fn segment(
    name: &str,
    value: &Value,
    writing: ParameterSerialization,
    budget: &mut RequestByteBudget,
) -> Result<Option<String>, CallError> {
    let mut text = Text::new(budget, true);
    match (writing.style, value) {
        (_, Value::Null) => {}
        (ParameterStyle::Json, value) => text.json(value)?,
        (ParameterStyle::Label, value) => text.label(value, writing.explode)?,
        (ParameterStyle::Matrix, value) => text.matrix(name, value, writing.explode)?,
        (_, value) => text.simple(value, writing.explode)?,
    }
    // With an empty segment, the request would go to another path.
    Ok(Some(text.text).filter(|text| !text.is_empty()))
}

/// A value as a header's text, without escapes.
pub(super) fn plain(
    value: &Value,
    writing: ParameterSerialization,
    budget: &mut RequestByteBudget,
) -> Result<String, CallError> {
    let mut text = Text::new(budget, false);
    match writing.style {
        ParameterStyle::Json => text.json(value)?,
        _ => text.simple(value, writing.explode)?,
    }
    Ok(text.text)
}

#[cfg(test)]
mod tests;

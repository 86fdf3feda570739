//! Parameters: how their values are written into a request (OpenAPI 3.1 section 4.8.12, RFC 6570).

use alknet_call::CallError;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC};
use serde_json::{Map, Value};

use super::error::DocumentError;
use super::refs::Document;
use super::room::Room;

/// Everything but the characters that mean nothing anywhere in a URI (RFC 3986 section 2.3).
pub(super) const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// The same with the reserved characters of a query as they are, where a document wants that. What would
/// end the value or the query is written escaped even so.
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

/// Where a parameter goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Place {
    Path,
    Query,
    Header,
    Cookie,
}

impl Place {
    pub(super) fn of(text: &str) -> Option<Self> {
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

/// How a value that is no scalar is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    DeepObject,
    Form,
    /// As JSON, for parameters that are described by `content`.
    Json,
    Label,
    Matrix,
    PipeDelimited,
    Simple,
    SpaceDelimited,
}

impl Style {
    pub(super) fn of(text: &str) -> Option<Self> {
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
    /// As the server calls it.
    pub(super) name: String,
    /// As the member of the input is called.
    pub(super) member: String,
    pub(super) place: Place,
    pub(super) writing: Writing,
    pub(super) is_required: bool,
    pub(super) schema: Option<&'a Value>,
    pub(super) description: Option<&'a str>,
}

/// How a value is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Writing {
    pub(super) style: Style,
    pub(super) explode: bool,
    pub(super) reserved: bool,
}

impl Writing {
    pub(super) const FORM: Self = Self {
        style: Style::Form,
        explode: true,
        reserved: false,
    };

    /// As `node`, a parameter or an encoding, says; else as is usual for its place.
    pub(super) fn of(node: &Value, place: Place) -> Self {
        let usual = match place {
            Place::Path | Place::Header => Style::Simple,
            Place::Query | Place::Cookie => Style::Form,
        };
        let style = node
            .get("style")
            .and_then(Value::as_str)
            .and_then(Style::of);
        let style = style.unwrap_or(usual);
        let flag = |name: &str| node.get(name).and_then(Value::as_bool);
        Self {
            style,
            explode: flag("explode").unwrap_or(style == Style::Form),
            reserved: flag("allowReserved").unwrap_or(false),
        }
    }
}

impl<'a> Parameter<'a> {
    /// The parameter that `node` describes; `None` for one that is no business of a caller.
    pub(super) fn read(
        document: &'a Document,
        node: &'a Value,
        at: &str,
    ) -> Result<Option<Self>, DocumentError> {
        let node = document.resolve(node, at)?;
        let text = |name: &str| node.get(name).and_then(Value::as_str);
        let name = text("name").ok_or_else(|| DocumentError::shape(at, "a parameter"))?;
        let place = text("in").and_then(Place::of);
        let place = place
            .ok_or_else(|| DocumentError::shape(at, "in a path, a query, a header or a cookie"))?;
        if place == Place::Header && !is_free_header(name) {
            return Ok(None);
        }
        let mut writing = Writing::of(node, place);
        let mut schema = node.get("schema");
        if let Some(content) = node.get("content").and_then(Value::as_object) {
            writing.style = Style::Json;
            schema = content
                .values()
                .next()
                .and_then(|media| media.get("schema"));
        }
        Ok(Some(Self {
            name: name.to_owned(),
            member: name.to_owned(),
            place,
            writing,
            is_required: place == Place::Path
                || node.get("required").and_then(Value::as_bool) == Some(true),
            schema,
            description: text("description"),
        }))
    }
}

/// Headers that are the client's own business, or that would be somebody else's secret (OpenAPI 3.1
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

/// Pairs of a query, a form or cookies, as the text that is sent.
#[derive(Debug)]
pub(super) struct Pairs<'r> {
    text: String,
    room: &'r mut Room,
    between: &'static str,
}

/// What a pair is called: a member `c` of `a[b]` is `a[b][c]`. A list of names, and not their text: an input has a name
/// once for all that lies below it.
#[derive(Clone, Copy)]
enum Name<'a> {
    Whole(&'a str),
    Member(&'a Self, &'a str),
    Item(&'a Self, usize),
}

impl<'r> Pairs<'r> {
    /// None yet. `between` stands between two of them.
    pub(super) fn new(room: &'r mut Room, between: &'static str) -> Self {
        Self {
            text: String::new(),
            room,
            between,
        }
    }

    pub(super) fn finish(self) -> String {
        self.text
    }

    /// What a value becomes.
    pub(super) fn add(
        &mut self,
        name: &str,
        value: &Value,
        writing: Writing,
    ) -> Result<(), CallError> {
        let set = if writing.reserved { RESERVED } else { ESCAPED };
        let whole = Name::Whole(name);
        match (writing.style, value) {
            (_, Value::Null) => Ok(()),
            (Style::Json, value) => self.json(name, value, set),
            (Style::DeepObject, Value::Object(_) | Value::Array(_)) => {
                self.deep(&whole, value, set)
            }
            (Style::SpaceDelimited, Value::Array(list)) => self.joined(name, list, " ", set),
            (Style::PipeDelimited, Value::Array(list)) => self.joined(name, list, "|", set),
            (_, Value::Array(list)) if writing.explode => {
                let mut each = list.iter();
                each.try_for_each(|one| self.pair(&whole, one, set))
            }
            (_, Value::Array(list)) => self.joined(name, list, ",", set),
            (_, Value::Object(members)) if writing.explode => {
                let mut each = members.iter().filter(|(_, value)| !value.is_null());
                each.try_for_each(|(name, value)| self.pair(&Name::Whole(name), value, set))
            }
            (_, Value::Object(members)) => self.members(name, members, set),
            (_, value) => self.pair(&whole, value, set),
        }
    }

    /// A value as JSON.
    pub(super) fn json(
        &mut self,
        name: &str,
        value: &Value,
        set: &'static AsciiSet,
    ) -> Result<(), CallError> {
        self.begin(&Name::Whole(name))?;
        let text = self.room.json(value)?;
        self.room.push_escaped(&mut self.text, &text, set)
    }

    /// `a[b][c]=d`, to any depth.
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
                self.room.push_escaped(&mut self.text, by, set)?;
            }
            self.scalar(one, set)?;
        }
        Ok(())
    }

    /// Names and values in turn, as one value.
    fn members(
        &mut self,
        name: &str,
        members: &Map<String, Value>,
        set: &'static AsciiSet,
    ) -> Result<(), CallError> {
        self.begin(&Name::Whole(name))?;
        for (at, (member, value)) in members.iter().enumerate() {
            if at > 0 {
                self.room.push_escaped(&mut self.text, ",", set)?;
            }
            self.room.push_escaped(&mut self.text, member, set)?;
            self.room.push_escaped(&mut self.text, ",", set)?;
            self.scalar(value, set)?;
        }
        Ok(())
    }

    /// Everything of a pair before its value.
    fn begin(&mut self, name: &Name<'_>) -> Result<(), CallError> {
        if !self.text.is_empty() {
            self.room.push(&mut self.text, self.between)?;
        }
        self.name(name)?;
        self.room.push(&mut self.text, "=")
    }

    fn name(&mut self, name: &Name<'_>) -> Result<(), CallError> {
        let index;
        let (up, own) = match *name {
            Name::Whole(name) => return self.room.push_escaped(&mut self.text, name, ESCAPED),
            Name::Member(up, member) => (up, member),
            Name::Item(up, at) => {
                index = at.to_string();
                (up, index.as_str())
            }
        };
        self.name(up)?;
        self.room.push_escaped(&mut self.text, "[", ESCAPED)?;
        self.room.push_escaped(&mut self.text, own, ESCAPED)?;
        self.room.push_escaped(&mut self.text, "]", ESCAPED)
    }

    fn scalar(&mut self, value: &Value, set: &'static AsciiSet) -> Result<(), CallError> {
        let text = self.room.scalar(value)?;
        self.room.push_escaped(&mut self.text, &text, set)
    }
}

/// A value as text, with or without escapes.
struct Text<'r> {
    text: String,
    room: &'r mut Room,
    escapes: bool,
}

impl<'r> Text<'r> {
    fn new(room: &'r mut Room, escapes: bool) -> Self {
        Self {
            text: String::new(),
            room,
            escapes,
        }
    }

    /// What stands for itself.
    fn mark(&mut self, text: &str) -> Result<(), CallError> {
        self.room.push(&mut self.text, text)
    }

    fn push(&mut self, text: &str) -> Result<(), CallError> {
        match self.escapes {
            true => self.room.push_escaped(&mut self.text, text, ESCAPED),
            false => self.mark(text),
        }
    }

    fn json(&mut self, value: &Value) -> Result<(), CallError> {
        let text = self.room.json(value)?;
        self.push(&text)
    }

    fn scalar(&mut self, value: &Value) -> Result<(), CallError> {
        let text = self.room.scalar(value)?;
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

    fn named(&mut self, name: &str) -> Result<(), CallError> {
        self.mark(";")?;
        self.push(name)?;
        self.mark("=")
    }

    fn label(&mut self, value: &Value, explode: bool) -> Result<(), CallError> {
        let by = if explode { "." } else { "," };
        let equals = if explode { "=" } else { "," };
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
                self.named(name)?;
                self.scalar(one)
            }),
            Value::Object(value) if explode => {
                self.mark(";")?;
                self.members(value, "=", ";")
            }
            value => {
                self.named(name)?;
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

/// A value as part of a path, escaped; `None` where nothing would stand there.
pub(super) fn segment(
    name: &str,
    value: &Value,
    writing: Writing,
    room: &mut Room,
) -> Result<Option<String>, CallError> {
    let mut text = Text::new(room, true);
    match (writing.style, value) {
        (_, Value::Null) => {}
        (Style::Json, value) => text.json(value)?,
        (Style::Label, value) => text.label(value, writing.explode)?,
        (Style::Matrix, value) => text.matrix(name, value, writing.explode)?,
        (_, value) => text.simple(value, writing.explode)?,
    }
    Ok(Some(text.text).filter(|text| !text.is_empty()))
}

/// A value as a header's text, as it is.
pub(super) fn plain(value: &Value, writing: Writing, room: &mut Room) -> Result<String, CallError> {
    let mut text = Text::new(room, false);
    match writing.style {
        Style::Json => text.json(value)?,
        _ => text.simple(value, writing.explode)?,
    }
    Ok(text.text)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn writing(style: Style, explode: bool) -> Writing {
        Writing {
            style,
            explode,
            reserved: false,
        }
    }

    fn query(name: &str, value: &Value, writing: Writing) -> String {
        let mut room = Room::head();
        let mut pairs = Pairs::new(&mut room, "&");
        pairs.add(name, value, writing).expect("short");
        pairs.finish()
    }

    /// The table of OpenAPI 3.1, section 4.8.12.4.
    #[test]
    fn the_styles_of_the_specification() {
        let (text, list) = (json!("blue"), json!(["blue", "black", "brown"]));
        let object = json!({"R": 100, "G": 200, "B": 150});
        let path = |style, explode, value: &Value| {
            let written = segment("color", value, writing(style, explode), &mut Room::head());
            written.expect("short").unwrap_or_default()
        };
        for (style, explode, one, many, members) in [
            (
                Style::Matrix,
                false,
                ";color=blue",
                ";color=blue,black,brown",
                ";color=R,100,G,200,B,150",
            ),
            (
                Style::Matrix,
                true,
                ";color=blue",
                ";color=blue;color=black;color=brown",
                ";R=100;G=200;B=150",
            ),
            (
                Style::Label,
                false,
                ".blue",
                ".blue,black,brown",
                ".R,100,G,200,B,150",
            ),
            (
                Style::Label,
                true,
                ".blue",
                ".blue.black.brown",
                ".R=100.G=200.B=150",
            ),
            (
                Style::Simple,
                false,
                "blue",
                "blue,black,brown",
                "R,100,G,200,B,150",
            ),
            (
                Style::Simple,
                true,
                "blue",
                "blue,black,brown",
                "R=100,G=200,B=150",
            ),
        ] {
            assert_eq!(path(style, explode, &text), one);
            assert_eq!(path(style, explode, &list), many);
            assert_eq!(path(style, explode, &object), members);
        }
        let ask = |style, explode, value: &Value| query("color", value, writing(style, explode));
        for (style, explode, value, text) in [
            (Style::Form, false, &list, "color=blue%2Cblack%2Cbrown"),
            (
                Style::Form,
                true,
                &list,
                "color=blue&color=black&color=brown",
            ),
            (
                Style::Form,
                false,
                &object,
                "color=R%2C100%2CG%2C200%2CB%2C150",
            ),
            (Style::Form, true, &object, "R=100&G=200&B=150"),
            (
                Style::SpaceDelimited,
                false,
                &list,
                "color=blue%20black%20brown",
            ),
            (
                Style::PipeDelimited,
                false,
                &list,
                "color=blue%7Cblack%7Cbrown",
            ),
            (
                Style::DeepObject,
                true,
                &object,
                "color%5BR%5D=100&color%5BG%5D=200&color%5BB%5D=150",
            ),
        ] {
            assert_eq!(ask(style, explode, value), text);
        }
        let nested = json!({"a": {"b": [1, {"c": "x y"}]}, "n": null});
        assert_eq!(
            query("f", &nested, writing(Style::DeepObject, true)),
            "f%5Ba%5D%5Bb%5D%5B0%5D=1&f%5Ba%5D%5Bb%5D%5B1%5D%5Bc%5D=x%20y"
        );
    }

    #[test]
    fn nothing_gets_out_of_its_place() {
        let simple = writing(Style::Simple, false);
        let path = |value: Value| segment("x", &value, simple, &mut Room::head()).expect("short");
        assert_eq!(path(json!("../a?b#c")).as_deref(), Some("..%2Fa%3Fb%23c"));
        assert_eq!(path(json!("")), None);
        assert_eq!(path(json!(null)), None);
        let reserved = Writing {
            reserved: true,
            ..Writing::FORM
        };
        let reserved = query("a&b", &json!("c&d=e#f /?"), reserved);
        assert_eq!(reserved, "a%26b=c%26d%3De%23f%20/?");
        for own in ["Host", "content-length", "AUTHORIZATION", "a b", ""] {
            assert!(!is_free_header(own), "{own}");
        }
        assert!(is_free_header("X-Request-Id"));
    }
}

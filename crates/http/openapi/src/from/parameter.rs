//! Parameters: how their values are written into a request (OpenAPI 3.1 section 4.8.12, RFC 6570).

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

use super::error::DocumentError;
use super::refs::Document;

/// Everything but the characters that mean nothing anywhere in a URI (RFC 3986 section 2.3).
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC
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

/// Pairs of a query or a form.
pub(super) fn pairs(name: &str, value: &Value, writing: Writing) -> Vec<(String, String)> {
    let one = |text: String| vec![(name.to_owned(), text)];
    let joined = |list: &[Value], by: &str| {
        let list: Vec<_> = list.iter().map(scalar).collect();
        one(list.join(by))
    };
    match (writing.style, value) {
        (_, Value::Null) => Vec::new(),
        (Style::Json, value) => one(value.to_string()),
        (Style::DeepObject, Value::Object(_) | Value::Array(_)) => {
            let mut pairs = Vec::new();
            deep(name, value, &mut pairs);
            pairs
        }
        (Style::SpaceDelimited, Value::Array(list)) => joined(list, " "),
        (Style::PipeDelimited, Value::Array(list)) => joined(list, "|"),
        (_, Value::Array(list)) if writing.explode => {
            let each = list.iter().map(|one| (name.to_owned(), scalar(one)));
            each.collect()
        }
        (_, Value::Array(list)) => joined(list, ","),
        (_, Value::Object(members)) if writing.explode => {
            let each = members.iter().filter(|(_, value)| !value.is_null());
            each.map(|(name, value)| (name.clone(), scalar(value)))
                .collect()
        }
        (_, Value::Object(members)) => {
            let each = members
                .iter()
                .flat_map(|(name, value)| [name.clone(), scalar(value)]);
            one(each.collect::<Vec<_>>().join(","))
        }
        (_, value) => one(scalar(value)),
    }
}

/// `a[b][c]=d`, to any depth.
fn deep(name: &str, value: &Value, pairs: &mut Vec<(String, String)>) {
    match value {
        Value::Null => {}
        Value::Object(members) => {
            for (member, value) in members {
                deep(&format!("{name}[{member}]"), value, pairs);
            }
        }
        Value::Array(list) => {
            for (at, value) in list.iter().enumerate() {
                deep(&format!("{name}[{at}]"), value, pairs);
            }
        }
        scalar_value => pairs.push((name.to_owned(), scalar(scalar_value))),
    }
}

/// The text of pairs, escaped.
pub(super) fn query(pairs: &[(String, String)], reserved: bool) -> String {
    let set = if reserved { RESERVED } else { ESCAPED };
    let pair = |(name, value): &(String, String)| {
        let name = utf8_percent_encode(name, ESCAPED);
        let value = utf8_percent_encode(value, set);
        format!("{name}={value}")
    };
    pairs.iter().map(pair).collect::<Vec<_>>().join("&")
}

/// A value as part of a path, escaped; `None` where nothing would stand there.
pub(super) fn segment(name: &str, value: &Value, writing: Writing) -> Option<String> {
    let escape = |text: &str| utf8_percent_encode(text, ESCAPED).to_string();
    let list = |list: &[Value], by: &str| {
        let list: Vec<_> = list.iter().map(|one| escape(&scalar(one))).collect();
        list.join(by)
    };
    let members = |value: &serde_json::Map<String, Value>, equals: &str, by: &str| {
        let each = value
            .iter()
            .map(|(name, value)| format!("{}{equals}{}", escape(name), escape(&scalar(value))));
        each.collect::<Vec<_>>().join(by)
    };
    let explode = writing.explode;
    let text = match (writing.style, value) {
        (_, Value::Null) => return None,
        (Style::Json, value) => escape(&value.to_string()),
        (Style::Label, value) => {
            let by = if explode { "." } else { "," };
            let equals = if explode { "=" } else { "," };
            let text = match value {
                Value::Array(values) => list(values, by),
                Value::Object(value) => members(value, equals, by),
                value => escape(&scalar(value)),
            };
            format!(".{text}")
        }
        (Style::Matrix, value) => {
            let name = escape(name);
            match value {
                Value::Array(values) if explode => {
                    let each = values
                        .iter()
                        .map(|one| format!(";{name}={}", escape(&scalar(one))));
                    each.collect()
                }
                Value::Array(values) => format!(";{name}={}", list(values, ",")),
                Value::Object(value) if explode => format!(";{}", members(value, "=", ";")),
                Value::Object(value) => format!(";{name}={}", members(value, ",", ",")),
                value => format!(";{name}={}", escape(&scalar(value))),
            }
        }
        (_, Value::Array(values)) => list(values, ","),
        (_, Value::Object(value)) => members(value, if explode { "=" } else { "," }, ","),
        (_, value) => escape(&scalar(value)),
    };
    (!text.is_empty()).then_some(text)
}

/// A value as a header's text, as it is.
pub(super) fn plain(value: &Value, writing: Writing) -> String {
    match (writing.style, value) {
        (Style::Json, value) => value.to_string(),
        (_, Value::Array(list)) => list.iter().map(scalar).collect::<Vec<_>>().join(","),
        (_, Value::Object(members)) => {
            let equals = if writing.explode { "=" } else { "," };
            let each = members
                .iter()
                .map(|(name, value)| format!("{name}{equals}{}", scalar(value)));
            each.collect::<Vec<_>>().join(",")
        }
        (_, value) => scalar(value),
    }
}

/// Text as it is, everything else as JSON.
pub(super) fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
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

    /// The table of OpenAPI 3.1, section 4.8.12.4.
    #[test]
    fn the_styles_of_the_specification() {
        let (text, list) = (json!("blue"), json!(["blue", "black", "brown"]));
        let object = json!({"R": 100, "G": 200, "B": 150});
        let path = |style, explode, value: &Value| {
            segment("color", value, writing(style, explode)).unwrap_or_default()
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
        let ask = |style, explode, value: &Value| {
            query(&pairs("color", value, writing(style, explode)), false)
        };
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
        let pairs = pairs("f", &nested, writing(Style::DeepObject, true));
        let shown: Vec<_> = pairs.iter().map(|(n, v)| format!("{n}={v}")).collect();
        assert_eq!(shown, ["f[a][b][0]=1", "f[a][b][1][c]=x y"]);
    }

    #[test]
    fn nothing_gets_out_of_its_place() {
        let simple = writing(Style::Simple, false);
        let path = |value: Value| segment("x", &value, simple);
        assert_eq!(path(json!("../a?b#c")).as_deref(), Some("..%2Fa%3Fb%23c"));
        assert_eq!(path(json!("")), None);
        assert_eq!(path(json!(null)), None);
        let reserved = query(&[("a&b".to_owned(), "c&d=e#f /?".to_owned())], true);
        assert_eq!(reserved, "a%26b=c%26d%3De%23f%20/?");
        for own in ["Host", "content-length", "AUTHORIZATION", "a b", ""] {
            assert!(!is_free_header(own), "{own}");
        }
        assert!(is_free_header("X-Request-Id"));
    }
}

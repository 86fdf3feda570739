//! Listings of directories, for people and for programs. Both are written entry by entry, so that a long directory is sent
//! page by page.

use http::HeaderMap;
use http::header::ACCEPT;
use serde::Serialize;

use super::time::http_date;
use super::xml::escape_text;

/// Header fields of every listing as HTML. Names of files are texts of other people: the page has no script, no style and
/// no form, and the browser is to run none. Downloads stay possible.
pub const LISTING_HEADERS: [(&str, &str); 4] = [
    (
        "content-security-policy",
        "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; sandbox allow-downloads",
    ),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("cache-control", "no-cache"),
];

/// The form of a listing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ListingFormat {
    /// A page.
    Html,
    /// An object with `path` and `entries`, and with `next` if there are more.
    Json,
}

/// The begin of a listing.
#[derive(Clone, Copy, Debug)]
pub struct ListingHead<'a> {
    /// The address of the directory, as a title.
    pub title: &'a str,
    /// Whether there is a directory above it.
    pub has_parent: bool,
}

/// An entry of a listing.
#[derive(Clone, Copy, Debug)]
pub struct ListedEntry<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its kind: `file`, `directory` or `symlink`.
    pub kind: &'a str,
    /// Its URI reference.
    pub href: &'a str,
    /// Bytes of a file.
    pub size: Option<u64>,
    /// Time of the last modification, in nanoseconds since 1970-01-01 UTC.
    pub modified_ns: i64,
    /// The hash of a file, in hexadecimal digits.
    pub hash: Option<&'a str>,
}

/// An entry in a listing as JSON.
#[derive(Serialize)]
struct ListingObject<'a> {
    name: &'a str,
    kind: &'a str,
    href: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    modified_ns: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    hash: Option<&'a str>,
}

impl ListingFormat {
    /// The form that a client prefers: JSON only if it asks for it more than for HTML (RFC 9110 §12.5.1).
    #[must_use]
    pub fn from_headers(headers: &HeaderMap) -> Self {
        let lines = headers.get_all(ACCEPT).iter();
        let lines = lines.filter_map(|it| it.to_str().ok());
        let (mut html, mut json) = (Preference::default(), Preference::default());
        for range in lines.flat_map(|it| it.split(',')) {
            let mut parts = range.split(';').map(str::trim);
            let name = parts.next().unwrap_or_default().to_ascii_lowercase();
            let weight =
                parts.find_map(|it| it.strip_prefix("q=").or_else(|| it.strip_prefix("Q=")));
            // A weight that is no number wants nothing: the other form is then the safer answer.
            let weight = weight.map_or(1.0, |it| it.parse().unwrap_or(0.0_f32));
            html.meet(&name, ["text/html", "text/*"], weight);
            json.meet(&name, ["application/json", "application/*"], weight);
        }
        if json.weight > html.weight {
            Self::Json
        } else {
            Self::Html
        }
    }

    /// The media type.
    #[must_use]
    pub const fn media_type(self) -> &'static str {
        match self {
            Self::Html => "text/html; charset=utf-8",
            Self::Json => "application/json",
        }
    }
}

/// How much a client wants one type. The most specific range of the field decides.
#[derive(Default)]
struct Preference {
    weight: f32,
    specificity: u8,
}

impl Preference {
    fn meet(&mut self, range: &str, [exact, group]: [&str; 2], weight: f32) {
        let specificity = match range {
            range if range == exact => 3,
            range if range == group => 2,
            "*/*" => 1,
            _ => return,
        };
        // Not "at least": the first of two equal ranges counts.
        if specificity > self.specificity {
            *self = Self {
                weight,
                specificity,
            };
        }
    }
}

/// The begin of a listing.
#[must_use]
pub fn listing_head(format: ListingFormat, head: &ListingHead<'_>) -> String {
    match format {
        ListingFormat::Html => {
            let title = escape_text(head.title);
            // The root of a bucket would lead to the list of buckets, which the page of the mount has.
            let parent = if head.has_parent {
                "<tr><td><a href=\"../\">../</a></td><td></td><td></td></tr>\n"
            } else {
                ""
            };
            format!(
                "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
                 <meta name=\"viewport\" content=\"width=device-width\"><title>{title}</title></head>\n\
                 <body><h1>{title}</h1>\n<table>\n\
                 <tr><th>Name</th><th>Bytes</th><th>Modified</th></tr>\n{parent}"
            )
        }
        ListingFormat::Json => format!("{{\"path\":{},\"entries\":[", json_text(head.title)),
    }
}

/// One entry. `is_first` is of the whole listing, however many pages it is read in.
#[must_use]
pub fn listing_row(format: ListingFormat, entry: &ListedEntry<'_>, is_first: bool) -> String {
    match format {
        ListingFormat::Html => {
            let slash = if entry.kind == "directory" { "/" } else { "" };
            let size = entry.size.map(|it| it.to_string()).unwrap_or_default();
            let modified = http_date(entry.modified_ns).unwrap_or_default();
            format!(
                "<tr><td><a href=\"{}\">{}{slash}</a></td><td>{size}</td><td>{modified}</td></tr>\n",
                escape_text(entry.href),
                escape_text(entry.name)
            )
        }
        ListingFormat::Json => {
            let object = ListingObject {
                name: entry.name,
                kind: entry.kind,
                href: entry.href,
                size: entry.size,
                modified_ns: entry.modified_ns,
                hash: entry.hash,
            };
            let comma = if is_first { "" } else { "," };
            // Texts and numbers have a form in JSON.
            format!(
                "{comma}{}",
                serde_json::to_string(&object).unwrap_or_default()
            )
        }
    }
}

/// The end of a listing. `next` is the URI reference of the next page.
#[must_use]
pub fn end_listing(format: ListingFormat, next: Option<&str>) -> String {
    match format {
        ListingFormat::Html => {
            let next = next.map(|it| format!("<p><a href=\"{}\">More</a></p>\n", escape_text(it)));
            format!("</table>\n{}</body></html>\n", next.unwrap_or_default())
        }
        ListingFormat::Json => {
            let next = next.map(|it| format!(",\"next\":{}", json_text(it)));
            format!("]{}}}\n", next.unwrap_or_default())
        }
    }
}

fn json_text(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    const HOSTILE: &str = "<script>alert('1')</script>\"&\u{1}";

    fn list(format: ListingFormat) -> String {
        let head = ListingHead {
            title: HOSTILE,
            has_parent: true,
        };
        let entry = ListedEntry {
            name: HOSTILE,
            kind: "file",
            href: "/fs/docs/a%3Cb",
            size: Some(3),
            modified_ns: 0,
            hash: Some("00"),
        };
        let directory = ListedEntry {
            name: "d",
            kind: "directory",
            size: None,
            hash: None,
            ..entry
        };
        let parts = [
            listing_head(format, &head),
            listing_row(format, &entry, true),
            listing_row(format, &directory, false),
            end_listing(format, Some("?page=a&b")),
        ];
        parts.concat()
    }

    #[test]
    fn a_page_has_no_markup_of_a_name() {
        let page = list(ListingFormat::Html);
        assert!(!page.contains("<script"), "{page}");
        assert!(page.contains("&lt;script&gt;"), "{page}");
        assert!(page.contains("<a href=\"/fs/docs/a%3Cb\">d/</a>"), "{page}");
        assert!(
            page.contains("<a href=\"?page=a&amp;b\">More</a>"),
            "{page}"
        );
        assert!(page.contains("Thu, 01 Jan 1970 00:00:00 GMT"), "{page}");
        assert!(page.ends_with("</body></html>\n"));
    }

    #[test]
    fn an_object_is_json() {
        let object: serde_json::Value =
            serde_json::from_str(&list(ListingFormat::Json)).expect("JSON");
        assert_eq!(object["path"], HOSTILE);
        assert_eq!(object["entries"][0]["name"], HOSTILE);
        assert_eq!(object["entries"][0]["size"], 3);
        assert!(object["entries"][1].get("size").is_none());
        assert_eq!(object["next"], "?page=a&b");
        let empty = listing_head(
            ListingFormat::Json,
            &ListingHead {
                title: "docs:/",
                has_parent: false,
            },
        );
        let empty = format!("{empty}{}", end_listing(ListingFormat::Json, None));
        let empty: serde_json::Value = serde_json::from_str(&empty).expect("JSON");
        assert_eq!(empty, serde_json::json!({"path": "docs:/", "entries": []}));
    }

    #[test]
    fn the_client_chooses_the_form() {
        for (accept, expected) in [
            ("", ListingFormat::Html),
            ("*/*", ListingFormat::Html),
            (
                "text/html,application/xhtml+xml,*/*;q=0.8",
                ListingFormat::Html,
            ),
            ("application/json", ListingFormat::Json),
            ("APPLICATION/JSON, */*", ListingFormat::Html),
            ("application/json, */*;q=0.1", ListingFormat::Json),
            ("application/json;q=0.5, text/html", ListingFormat::Html),
            ("text/html;q=0.1, application/*;q=0.2", ListingFormat::Json),
            ("application/json;q=x", ListingFormat::Html),
            ("image/png", ListingFormat::Html),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, HeaderValue::from_static(accept));
            assert_eq!(ListingFormat::from_headers(&headers), expected, "{accept}");
        }
    }

    #[test]
    fn fields_are_valid() {
        for (name, value) in LISTING_HEADERS {
            assert!(
                http::HeaderName::from_lowercase(name.as_bytes()).is_ok(),
                "{name}"
            );
            assert!(HeaderValue::from_str(value).is_ok(), "{value}");
        }
    }
}

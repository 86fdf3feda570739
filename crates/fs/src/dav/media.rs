//! How contents of files are sent: uploads are data, and no browser runs or renders them.

/// The media type of a file, by the extension of its name.
#[must_use]
pub fn media_type(name: &str) -> String {
    let kind = mime_guess::from_path(name).first_or_octet_stream();
    if kind.type_() == "text" || kind.subtype() == "javascript" {
        format!("{kind}; charset=utf-8")
    } else {
        kind.to_string()
    }
}

/// Header fields of every response with the content of a file. A page that a user uploaded must not act in the name of
/// this server: a browser saves it, does not guess another type, and runs no script of it if it shows it after all.
pub const FILE_HEADERS: [(&str, &str); 4] = [
    ("content-security-policy", "default-src 'none'; sandbox"),
    ("x-content-type-options", "nosniff"),
    ("content-disposition", "attachment"),
    ("cross-origin-resource-policy", "same-origin"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extensions_decide_types() {
        for (name, expected) in [
            ("a.txt", "text/plain; charset=utf-8"),
            ("a.PNG", "image/png"),
            ("a", "application/octet-stream"),
            ("a.no-such", "application/octet-stream"),
            ("a.html", "text/html; charset=utf-8"),
        ] {
            assert_eq!(media_type(name), expected, "{name}");
        }
    }

    #[test]
    fn fields_are_valid() {
        for (name, value) in FILE_HEADERS {
            assert!(
                http::HeaderName::from_lowercase(name.as_bytes()).is_ok(),
                "{name}"
            );
            assert!(http::HeaderValue::from_str(value).is_ok(), "{value}");
        }
    }
}

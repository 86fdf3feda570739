//! What a trusted comment says of the file that is signed.

/// The name of the file, in our comments and in those of minisign.
const FILE: &str = "file:";
/// What ends a comment of minisign 0.11: the hash of the file is signed.
const HASHED: &str = " hashed";
/// The version of the image, in the comment of a manifest.
const VERSION: &str = " version:";

/// The trusted comment for a file, and for a manifest with the version of its image. It has no time, so the same file
/// always has the same signature. A version with spaces is left out.
#[must_use]
pub fn file_comment(name: &str, version: Option<&str>) -> String {
    let is_word = |it: &&str| !it.is_empty() && !it.contains(|c: char| c.is_whitespace());
    match version.filter(is_word) {
        Some(version) => format!("{FILE}{name}{VERSION}{version}{HASHED}"),
        None => format!("{FILE}{name}{HASHED}"),
    }
}

/// Whether a trusted comment is that of a file with this name. `None` if it names no file, as a comment that a person
/// chose with `minisign -t`.
#[must_use]
pub fn comment_names(comment: &str, name: &str) -> Option<bool> {
    if comment.contains('\t') {
        // As minisign writes it: a time, the name, and that the hash is signed, with tabs between them.
        let mut parts = comment.split('\t');
        return parts.find_map(|part| Some(part.strip_prefix(FILE)? == name));
    }
    let said = comment.strip_prefix(FILE)?;
    let said = said.strip_suffix(HASHED).unwrap_or(said);
    let Some(rest) = said.strip_prefix(name) else {
        return Some(false);
    };
    let is_version = |it: &str| !it.contains(char::is_whitespace);
    Some(rest.is_empty() || rest.strip_prefix(VERSION).is_some_and(is_version))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comment_names_its_file_and_no_other() {
        for comment in [
            file_comment("manifest.json", None),
            file_comment("manifest.json", Some("0.1.0")),
            file_comment("manifest.json", Some("two words")),
            "timestamp:1700000000\tfile:manifest.json\thashed".into(),
            "timestamp:1700000000\tfile:manifest.json".into(),
        ] {
            assert_eq!(
                comment_names(&comment, "manifest.json"),
                Some(true),
                "{comment}"
            );
            for other in ["manifest", "manifest.json2", "a.json", ""] {
                assert_eq!(comment_names(&comment, other), Some(false), "{comment}");
            }
        }
        assert_eq!(comment_names("version:0.1.0", "manifest.json"), None);
    }

    #[test]
    fn the_version_is_a_word_of_the_comment() {
        let comment = file_comment("manifest.json", Some("0.1.0"));
        assert_eq!(comment, "file:manifest.json version:0.1.0 hashed");
        let comment = file_comment("a", Some("x\ny"));
        assert_eq!(comment, "file:a hashed");
    }
}

//! Names of operations and of their members.

use std::collections::HashSet;

use alknet_call::limits::OPERATION_BYTES_MAX;

/// The longest segment of a name.
const SEGMENT_BYTES_MAX: usize = 63;
/// The most segments after the namespace.
const SEGMENTS_MAX: usize = 3;
/// The bytes at the end of a shortened or repeated name: `_` and eight digits.
const END_BYTES: usize = 9;

/// Makes names that are unique.
pub(super) struct UniqueNames {
    namespace: String,
    taken: HashSet<String>,
}

impl UniqueNames {
    pub(super) fn new(namespace: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            taken: HashSet::new(),
        }
    }

    /// The name of an operation: from its id, or from its method and path if it has no usable id. If two operations
    /// would have one name, the later gets a number.
    pub(super) fn name(&mut self, id: Option<&str>, method: &str, path: &str) -> String {
        let own = id.map(of_id).unwrap_or_default();
        let own = match own.is_empty() {
            true => of_path(method, path),
            false => own,
        };
        let room = OPERATION_BYTES_MAX - self.namespace.len() - 1;
        let own = cut(&own, room);
        let mut name = format!("{}/{own}", self.namespace);
        let mut number = 2;
        while !self.taken.insert(name.clone()) {
            let end = format!("_{number}");
            let own = shortened(&own, room - end.len(), SEGMENT_BYTES_MAX - end.len());
            name = format!("{}/{own}{end}", self.namespace);
            number += 1;
        }
        name
    }
}

/// The segments of an id, which slashes separate. Each has letters, digits, `_` and `-`.
fn of_id(id: &str) -> String {
    let mut segments: Vec<_> = id.split('/').map(plain).filter(|s| !s.is_empty()).collect();
    if segments.len() > SEGMENTS_MAX {
        let rest = segments.split_off(SEGMENTS_MAX - 1);
        segments.push(rest.join("_"));
    }
    let segments: Vec<_> = segments.iter().map(|segment| segment_of(segment)).collect();
    segments.join("/")
}

fn of_path(method: &str, path: &str) -> String {
    let parts = path.split('/').map(plain).filter(|part| !part.is_empty());
    let mut name = method.to_owned();
    for part in parts {
        name.push('_');
        name.push_str(&part);
    }
    segment_of(&name)
}

/// Runs of other characters become one `_`, except at the beginning and the end.
fn plain(text: &str) -> String {
    let mut name = String::with_capacity(text.len());
    for c in text.chars() {
        match c.is_ascii_alphanumeric() || c == '_' || c == '-' {
            true => name.push(c),
            false if !name.is_empty() && !name.ends_with('_') => name.push('_'),
            false => {}
        }
    }
    name.trim_matches(['_', '-']).to_owned()
}

/// A segment that begins with a letter and is not too long.
fn segment_of(text: &str) -> String {
    let letter = text.starts_with(|c: char| c.is_ascii_alphabetic());
    let name = match letter {
        true => text.to_owned(),
        false => format!("op_{text}"),
    };
    cut(&name, SEGMENT_BYTES_MAX)
}

/// A shortened name ends with eight digits of a hash of the whole name, so two long names stay distinct.
fn cut(name: &str, most: usize) -> String {
    if name.len() <= most {
        return name.to_owned();
    }
    let start = shortened(name, most - END_BYTES, SEGMENT_BYTES_MAX - END_BYTES);
    format!("{start}_{:08x}", hash(name))
}

/// The beginning of a name, with at most `most` bytes in all and at most `segment` bytes in its last segment.
fn shortened(name: &str, most: usize, segment: usize) -> &str {
    // Names are ASCII at this point.
    let prefix = &name[..most.min(name.len())];
    let start = prefix.rfind('/').map_or(0, |at| at + 1);
    let prefix = &prefix[..prefix.len().min(start + segment)];
    prefix.trim_end_matches(['_', '-', '/'])
}

/// FNV-1a, which is the same on every node and in every version.
fn hash(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    })
}

#[cfg(test)]
mod tests {
    use alknet_call::is_operation_name;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ids_become_names() {
        for (id, name) in [
            ("listPets", "ns/listPets"),
            ("repos/list-for-org", "ns/repos/list-for-org"),
            ("a/b/c/d/e", "ns/a/b/c_d_e"),
            ("Get pets (all)", "ns/Get_pets_all"),
            ("users.get_by-id", "ns/users_get_by-id"),
            ("2fa", "ns/op_2fa"),
            ("//x//", "ns/x"),
            ("é", "ns/get_pets_id"),
            ("", "ns/get_pets_id"),
        ] {
            assert_eq!(
                UniqueNames::new("ns").name(Some(id), "get", "/pets/{id}"),
                name
            );
        }
        let root = UniqueNames::new("ns").name(None, "get", "/");
        assert_eq!(root, "ns/get");
        let digits = UniqueNames::new("ns").name(None, "post", "/2/x:y");
        assert_eq!(digits, "ns/post_2_x_y");
    }

    #[test]
    fn no_two_operations_have_one_name() {
        let mut names = UniqueNames::new("ns");
        assert_eq!(names.name(Some("a b"), "get", "/"), "ns/a_b");
        assert_eq!(names.name(Some("a_b"), "get", "/"), "ns/a_b_2");
        assert_eq!(names.name(Some("a.b"), "get", "/"), "ns/a_b_3");
        let long = "x".repeat(80);
        let one = names.name(Some(&format!("{long}1")), "get", "/");
        let two = names.name(Some(&format!("{long}2")), "get", "/");
        assert_ne!(one.trim_end_matches("_2"), two.trim_end_matches("_2"));
    }

    proptest! {
        #[test]
        fn every_name_follows_the_grammar(
            ids in proptest::collection::vec("\\PC{0,90}|[a-z/]{0,90}|[ab]", 1..8),
            path in "\\PC{0,90}|(/[a-z{}]{1,70}){1,4}",
        ) {
            let namespace = format!("a{}", "b".repeat(62));
            let mut names = UniqueNames::new(&namespace);
            for id in &ids {
                let name = names.name(Some(id), "delete", &path);
                prop_assert!(is_operation_name(&name), "{name}");
            }
        }
    }
}

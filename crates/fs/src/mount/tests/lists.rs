//! Long lists: how much of them waits for a client that does not read.

use alknet_store::{ChangeRequest, Durability, EntryAttributes, EntryPath, TreeChange};
use quick_xml::events::Event;
use quick_xml::reader::Reader;

use super::*;
use crate::dav::limits::{DEAD_PROPERTY_BYTES_MAX, PROPERTIES_NAMED_MAX};
use crate::dav::{DeadProperties, DeadProperty, XmlElement};
use crate::limits::SLOW_RESPONSE_BYTES_MAX;

/// Entries of a directory, of which a page has no more.
const ENTRIES: usize = 1000;

fn apply(mount: &TestMount, changes: Vec<TreeChange>) {
    let store = &mount.mount.files.0;
    let branch = store.read(|tx| {
        let bucket = tx.bucket_by_name(&"docs".parse()?)?;
        Ok(tx.branch_by_name(bucket.id, &"main".parse()?)?.id)
    });
    let request = ChangeRequest {
        branch: branch.wait().expect("a bucket"),
        actor: "alice".to_owned(),
        message: None,
        changes,
    };
    let applied = store.apply_with(Durability::default(), request, Vec::new(), Vec::new());
    applied.wait().expect("within the limits");
}

fn path(text: &str) -> EntryPath {
    text.parse().expect("a path")
}

/// Makes so many directories in one that exists.
fn fill(mount: &TestMount, directory: &str, name: &str) {
    let paths = (0..ENTRIES).map(|at| path(&format!("{directory}/{at:04}{name}")));
    apply(mount, paths.map(TreeChange::mkdir).collect());
}

/// The responses of a whole document.
fn responses(document: &str) -> usize {
    let mut reader = Reader::from_str(document);
    reader.config_mut().expand_empty_elements = true;
    let (mut open, mut count) = (0_usize, 0);
    loop {
        match reader.read_event().expect("well-formed") {
            Event::Start(start) => {
                open += 1;
                count += usize::from(start.name().into_inner() == "D:response");
            }
            Event::End(_) => open -= 1,
            Event::Eof => break,
            _ => {}
        }
    }
    assert_eq!(open, 0, "an element is not closed");
    count
}

#[track_caller]
fn assert_short_pieces(response: &TestResponse) {
    let limit = usize::try_from(SLOW_RESPONSE_BYTES_MAX).expect("small");
    assert!(response.body.len() > limit, "{} bytes", response.body.len());
    assert!(response.longest <= limit, "{} bytes", response.longest);
}

/// The names are as long as they may be together, and no entry has one of these properties.
fn ask_for_unknown(name_bytes: usize) -> String {
    let names = (0..PROPERTIES_NAMED_MAX).map(|at| format!("<p{at:0>name_bytes$}/>"));
    let names: String = names.collect();
    format!("<D:propfind xmlns:D='DAV:'><D:prop>{names}</D:prop></D:propfind>")
}

#[test]
fn names_that_no_entry_has_make_no_long_piece() {
    let mount = TestMount::new();
    mount.send("MKCOL", "/fs/docs/d", &[], "").expect(201);
    fill(&mount, "/d", "");
    let deep = [("depth", "1")];
    let found = mount.send("PROPFIND", "/fs/docs/d", &deep, &ask_for_unknown(63));
    let found = found.expect(207);
    assert_eq!(responses(&found.body), ENTRIES + 1);
    assert_short_pieces(&found);
    // Each entry once, also where a piece ended.
    for at in [0, 1, ENTRIES / 2, ENTRIES - 1] {
        let href = format!("<D:href>/fs/docs/d/{at:04}/</D:href>");
        assert_eq!(found.body.matches(&href).count(), 1, "{href}");
    }
    // A KiB for each of the names is refused.
    let refused = mount.send("PROPFIND", "/fs/docs/d", &deep, &ask_for_unknown(1000));
    refused.expect(413);
    // The mount lists buckets in the same way.
    let buckets = mount.send("PROPFIND", "/fs/", &deep, &ask_for_unknown(63));
    assert_eq!(responses(&buckets.expect(207).body), 2);
}

#[test]
fn properties_of_many_entries_make_no_long_piece() {
    const WITH_PROPERTIES: usize = 200;
    let mount = TestMount::new();
    mount.send("MKCOL", "/fs/docs/d", &[], "").expect(201);
    let mut properties = DeadProperties::default();
    let value = "x".repeat(DEAD_PROPERTY_BYTES_MAX - 100);
    for name in ["a", "b"] {
        let xml = format!("<{name}>{value}</{name}>");
        let element = XmlElement::parse(xml.as_bytes()).expect("well-formed");
        let set = properties.set(DeadProperty::from_element(&element));
        set.expect("room");
    }
    let attributes = EntryAttributes {
        xattr: properties.to_xattr(),
        ..EntryAttributes::default()
    };
    let changes = (0..WITH_PROPERTIES).map(|at| TreeChange::Mkdir {
        path: path(&format!("/d/{at:04}")),
        attributes: attributes.clone(),
        may_exist: false,
    });
    apply(&mount, changes.collect());
    let found = mount.send("PROPFIND", "/fs/docs/d", &[("depth", "1")], "");
    let found = found.expect(207);
    assert_eq!(responses(&found.body), WITH_PROPERTIES + 1);
    assert_eq!(found.body.matches(&value).count(), 2 * WITH_PROPERTIES);
    assert_short_pieces(&found);
}

#[test]
fn long_paths_make_no_long_piece() {
    let mount = TestMount::new();
    // Each sign of them takes three in a reference.
    let component = "{".repeat(254);
    let mut directory = String::new();
    for _ in 0..15 {
        directory = format!("{directory}/{component}");
        apply(&mount, vec![TreeChange::mkdir(path(&directory))]);
    }
    fill(&mount, &directory, &component[..200]);
    let target = format!("/fs/docs{}", directory.replace('{', "%7B"));
    let json = [("accept", "application/json")];
    let listed = mount.send("GET", &target, &json, "").expect(200);
    let list: serde_json::Value = serde_json::from_str(&listed.body).expect("one document");
    assert_eq!(list["entries"].as_array().map(Vec::len), Some(ENTRIES));
    assert_short_pieces(&listed);
    let page = mount
        .send("GET", &format!("{target}/"), &[], "")
        .expect(200);
    assert_eq!(page.body.matches("<a href=\"/fs/").count(), ENTRIES);
    assert!(page.body.ends_with("</body></html>\n"));
    assert_short_pieces(&page);
}

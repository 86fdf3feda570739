//! The paths of a store, a page at a time.

use std::ops::Bound;

use alknet_tensor::FileId;

use crate::path::StorePath;
use crate::store::TensorStore;

/// Paths that are read at a time, so that a long list holds the lock of the store for short times only.
const CHUNK: usize = 1024;

/// A path of a store, and the file that it leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredTensorPath {
    /// The path.
    pub path: StorePath,
    /// The file.
    pub id: FileId,
    /// Bytes of the file.
    pub bytes: u64,
}

/// A part of the list of paths.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoredPathPage {
    /// In the order of the paths.
    pub files: Vec<StoredTensorPath>,
    /// Whether the list goes on behind the last of them.
    pub has_more: bool,
}

impl TensorStore {
    /// Lists the paths behind `after` for which `is_shown` holds, at most `most` of them. Blocks.
    #[must_use]
    pub fn list(
        &self,
        after: Option<StorePath>,
        most: usize,
        is_shown: impl Fn(&str) -> bool,
    ) -> StoredPathPage {
        let mut page = StoredPathPage::default();
        let mut from = after.map_or(Bound::Unbounded, Bound::Excluded);
        loop {
            let chunk = self.paths_from(&from);
            let Some((last, _)) = chunk.last() else {
                return page;
            };
            from = Bound::Excluded(last.clone());
            for (path, id) in chunk {
                if !is_shown(path.as_str()) {
                    continue;
                }
                // Another request may have removed the file since.
                let Ok(about) = self.object_path(&id).metadata() else {
                    continue;
                };
                if page.files.len() == most {
                    page.has_more = true;
                    return page;
                }
                let bytes = about.len();
                page.files.push(StoredTensorPath { path, id, bytes });
            }
        }
    }

    fn paths_from(&self, from: &Bound<StorePath>) -> Vec<(StorePath, FileId)> {
        let state = self.state();
        let range = (from.as_ref(), Bound::Unbounded);
        let paths = state.paths.range::<StorePath, _>(range).take(CHUNK);
        paths.map(|(path, id)| (path.clone(), *id)).collect()
    }
}

#[cfg(test)]
mod tests {
    use alknet_tensor::{ContainerWriter, Dtype};

    use super::*;
    use crate::store::StoreOptions;

    fn path(text: &str) -> StorePath {
        StorePath::parse(text).expect("a path")
    }

    #[test]
    fn a_list_has_what_is_shown_in_order_and_in_pages() {
        let folder = tempfile::tempdir().expect("writable");
        let store = TensorStore::open(folder.path().join("store"), StoreOptions::default());
        let store = store.expect("writable");
        let file = folder.path().join("a.mt");
        let mut writer = ContainerWriter::create(&file).expect("writable");
        let content = vec![7; 3];
        writer
            .flat("a", Dtype::U8, &[3], content.into())
            .expect("it fits");
        writer.save().expect("writable");
        let bytes = file.metadata().expect("it was made").len();
        for name in ["b", "a/secret", "a/c", "a-b"] {
            let opened = std::fs::File::open(&file).expect("it was made");
            store.add(opened, Some(path(name))).expect("room");
        }
        let is_shown = |path: &str| path != "a/secret";
        let list = |after: Option<&str>, most| {
            let page = store.list(after.map(path), most, is_shown);
            assert!(page.files.iter().all(|file| file.bytes == bytes));
            let names = page.files.iter().map(|file| file.path.to_string());
            (names.collect::<Vec<_>>(), page.has_more)
        };
        let all = ["a-b", "a/c", "b"].map(str::to_owned);
        assert_eq!(list(None, 3), (all.to_vec(), false));
        assert_eq!(list(None, 2), (all[..2].to_vec(), true));
        assert_eq!(list(Some("a/c"), 2), (all[2..].to_vec(), false));
        assert_eq!(list(Some("a/secret"), 9), (all[2..].to_vec(), false));
        assert_eq!(list(Some("z"), 9), (Vec::new(), false));
    }
}

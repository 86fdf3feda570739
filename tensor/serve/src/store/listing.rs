//! The paths of a store, a page at a time.

use std::ops::Bound;

use alknet_tensor::FileId;

use crate::access::ReadablePaths;
use crate::path::StorePath;
use crate::store::TensorStore;

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
    /// If the list goes on: the path behind which it does, which is one of those asked for.
    pub next: Option<StorePath>,
}

impl TensorStore {
    /// Lists those of the paths `within` that are behind `after`. Blocks. Looks at `most` of them, however many paths
    /// the store has: a page is shorter if files are missing.
    #[must_use]
    pub fn list(
        &self,
        within: &ReadablePaths,
        after: Option<&StorePath>,
        most: usize,
    ) -> StoredPathPage {
        let mut found = self.paths_within(within, after, most.saturating_add(1));
        let has_more = found.len() > most;
        found.truncate(most);
        let last = found.last().filter(|_| has_more);
        let next = last.map(|(path, _)| path.clone());
        let files = found.into_iter().filter_map(|(path, id)| {
            // Another request may have removed the file since.
            let bytes = self.object_path(&id).metadata().ok()?.len();
            Some(StoredTensorPath { path, id, bytes })
        });
        StoredPathPage {
            files: files.collect(),
            next,
        }
    }

    /// The first `most` of the paths `within` that are behind `after`. A caller that may read few paths must not have
    /// the node look at all of them.
    fn paths_within(
        &self,
        within: &ReadablePaths,
        after: Option<&StorePath>,
        most: usize,
    ) -> Vec<(StorePath, FileId)> {
        let after = after.map(StorePath::as_str);
        let mut found = Vec::new();
        let ranges = within.ranges();
        let state = self.state();
        for (from, to) in &ranges {
            // A map panics at a range that ends before it begins.
            if after.is_some_and(|after| after >= to.as_str()) {
                continue;
            }
            let from = match after {
                Some(after) if after >= from.as_str() => Bound::Excluded(after),
                _ => Bound::Included(from.as_str()),
            };
            let range = (from, Bound::Excluded(to.as_str()));
            let paths = state.paths.range::<str, _>(range);
            let paths = paths.take(most.saturating_sub(found.len()));
            found.extend(paths.map(|(path, id)| (path.clone(), *id)));
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use alknet_core::ScopeSet;
    use alknet_tensor::{ContainerWriter, Dtype};

    use super::*;
    use crate::limits::PATHS;
    use crate::store::StoreOptions;

    fn path(text: &str) -> StorePath {
        StorePath::parse(text).expect("a path")
    }

    fn readable(scopes: &[&str]) -> ReadablePaths {
        let scopes: ScopeSet = scopes.iter().collect();
        ReadablePaths::from_scopes(&scopes).expect("a scope for reading")
    }

    /// A store with one file, which this path leads to, and its id and bytes.
    fn store_with(folder: &Path, name: &str) -> (Arc<TensorStore>, FileId, u64) {
        let store = TensorStore::open(folder.join("store"), StoreOptions::default());
        let store = store.expect("writable");
        let file = folder.join("a.mt");
        let mut writer = ContainerWriter::create(&file).expect("writable");
        let content = vec![7; 3];
        writer
            .flat("a", Dtype::U8, &[3], content.into())
            .expect("it fits");
        writer.save().expect("writable");
        let bytes = file.metadata().expect("it was made").len();
        let opened = std::fs::File::open(&file).expect("it was made");
        let id = store.add(opened, Some(path(name))).expect("room");
        (store, id, bytes)
    }

    fn names(page: &StoredPathPage) -> Vec<&str> {
        page.files.iter().map(|file| file.path.as_str()).collect()
    }

    #[test]
    fn a_list_has_what_is_readable_in_order_and_in_pages() {
        let folder = tempfile::tempdir().expect("writable");
        let (store, id, bytes) = store_with(folder.path(), "b");
        for name in ["a/secret", "a/c", "a-b"] {
            store.lead(path(name), id).expect("room");
        }
        let within = readable(&["tensor:read:b", "tensor:read:a/c", "tensor:read:a-b"]);
        let list = |after: Option<&str>, most| {
            let page = store.list(&within, after.map(path).as_ref(), most);
            assert!(page.files.iter().all(|file| file.bytes == bytes));
            let names = names(&page).into_iter().map(str::to_owned);
            (names.collect::<Vec<_>>(), page.next)
        };
        let all = ["a-b", "a/c", "b"].map(str::to_owned);
        assert_eq!(list(None, 3), (all.to_vec(), None));
        // The next page does not begin behind a path that the caller may not read.
        assert_eq!(list(None, 2), (all[..2].to_vec(), Some(path("a/c"))));
        assert_eq!(list(Some("a/c"), 2), (all[2..].to_vec(), None));
        assert_eq!(list(Some("a/secret"), 9), (all[2..].to_vec(), None));
        assert_eq!(list(Some("z"), 9), (Vec::new(), None));
        std::fs::remove_file(store.object_path(&id)).expect("it is there");
        assert_eq!(list(None, 2), (Vec::new(), Some(path("a/c"))));
    }

    #[test]
    fn a_page_of_a_full_store_looks_at_few_paths() {
        let folder = tempfile::tempdir().expect("writable");
        let (store, id, _) = store_with(folder.path(), "m/00000");
        let all: Vec<_> = (0..PATHS).map(|n| path(&format!("m/{n:05}"))).collect();
        for path in &all {
            // To write as many names to the disk takes long.
            store.state().lead(path.clone(), id);
        }
        let everything = readable(&["tensor:read:m"]);
        let most = 1000;
        let (mut listed, mut after, mut pages) = (Vec::new(), None, 0);
        loop {
            let page = store.list(&everything, after.as_ref(), most);
            assert!(page.files.len() <= most);
            listed.extend(page.files.into_iter().map(|file| file.path));
            pages += 1;
            match page.next {
                Some(next) => after = Some(next),
                None => break,
            }
        }
        assert_eq!((pages, &listed), (PATHS.div_ceil(most), &all));
        // What a caller may not read, or does not ask for, is not looked at.
        let one = readable(&["tensor:read:m/65000"]);
        let below = ReadablePaths::below([path("m/65000")]);
        for within in [one, everything.and(below)] {
            let looked_at = store.paths_within(&within, None, PATHS);
            assert_eq!(looked_at, [(path("m/65000"), id)]);
            let page = store.list(&within, None, most);
            assert_eq!((names(&page), &page.next), (vec!["m/65000"], &None));
        }
    }
}

//! A whole file, in order, proven by its id.

use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

use serde_json::json;

use super::partial_download::PartialDownload;
use super::{ClientError, PullResult, TensorClient, expect_size, local, proven};
use crate::limits::GROUP_BYTES;
use crate::path::TensorFileRef;

impl TensorClient {
    /// Fetches a whole file. What of it is there from an earlier attempt that was cut is not
    /// fetched again; what is not proven by the id is not written.
    ///
    /// Where the file is asked for by a path, the other side says which id that is.
    ///
    /// # Errors
    /// See [`ClientError`]. `target` is then as it was.
    pub async fn pull(
        &self,
        src: &TensorFileRef,
        target: &Path,
        told: &(dyn Fn(u64, u64) + Sync),
    ) -> Result<PullResult, ClientError> {
        let header = self.header(src).await?;
        let (id, len) = (header.id, header.meta.file_len());
        let mut kept = PartialDownload::open(target, &id.0)?;
        // Whole groups were proven before they were written.
        let from = kept.len()?.min(len) / GROUP_BYTES * GROUP_BYTES;
        kept.cut(from)?;
        let want = json!({ "want": "range", "range": [from, len], "encoding": "bao16" });
        if from < len || len == 0 {
            let (head, recv) = self.fetch(src, want).await?;
            expect_size(&head, len)?;
            let shown = kept.shown();
            let file = kept.file();
            file.seek(SeekFrom::End(0)).map_err(local(&shown))?;
            let write = |at: u64, bytes: &[u8]| {
                file.write_all(bytes).map_err(local(&shown))?;
                told(at + bytes.len() as u64, len);
                Ok(())
            };
            proven(recv, &id.0, len, &(from..len), write).await?;
        }
        kept.expect(0..len, &id.0)?;
        kept.name(target)?;
        Ok(PullResult {
            id,
            bytes: len,
            fetched: len - from,
        })
    }
}

//! Requests of `/iroh-bytes/4`.

use alknet_fs::limits::{BLOB_BOUNDARIES_MAX, BLOB_REQUEST_BYTES_MAX, BLOB_SELECTIONS_MAX};
use alknet_fs::{BlobRequest, BlobRequestError, BlobRequestParser};

fn parse<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Result<BlobRequest, BlobRequestError> {
    let mut parser = BlobRequestParser::new();
    for piece in pieces {
        parser.push(piece)?;
    }
    parser.finish()
}

/// Reads the bytes as a request, at once and byte by byte.
pub fn iroh_bytes(data: &[u8]) -> bool {
    let parsed = parse([data]);
    // The pieces in which a request arrives change nothing.
    assert_eq!(parse(data.chunks(1)), parsed);
    let Ok(request) = parsed else {
        return false;
    };
    assert!(data.len() <= BLOB_REQUEST_BYTES_MAX + 1);
    let encoded = request.encode();
    // Numbers may be longer than they need to be, so that the encoding may be shorter.
    assert!(encoded.len() <= data.len());
    assert_eq!(parse([encoded.as_slice()]).as_ref(), Ok(&request));
    if let BlobRequest::Get { selections, .. } = &request {
        let mut boundaries = 0;
        let mut number = selections.next_selected(0);
        for _ in 0..BLOB_SELECTIONS_MAX {
            let Some(present) = number else {
                break;
            };
            let selection = selections.selection(present);
            let selection = selection.unwrap_or_else(|| panic!("{present} is selected"));
            assert!(!selection.is_empty());
            boundaries = boundaries.max(selection.boundaries().len());
            // What is selected of any content is at most the content.
            for len in [0, 1, 1024, 16_385, 1 << 40] {
                assert!(selection.bytes(len) <= len);
            }
            number = present
                .checked_add(1)
                .and_then(|next| selections.next_selected(next));
        }
        assert!(boundaries <= BLOB_BOUNDARIES_MAX);
    }
    true
}

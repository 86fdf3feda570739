//! Containers: the header, and its description of records and items.

use std::io::Cursor;

use alknet_tensor::tools::{RewriteOptions, list, rewrite, strip};
use alknet_tensor::{
    ContainerLimits, ContainerReader, HeaderEntry, PREFIX_BYTES, TensorError, TensorKind,
    VerifyDepth, header_len, verify,
};
use safetensors::SafeTensors;

/// Takes a whole file, unchanged and with the length of its header adjusted: up to the last brace.
pub fn tensor(data: &[u8]) -> bool {
    let mut fitted = data.to_vec();
    // Without a matching length, hardly any input would get past the prefix.
    let brace = data.iter().rposition(|byte| *byte == b'}');
    if let Some(len) = brace.and_then(|at| (at + 1).checked_sub(PREFIX_BYTES as usize)) {
        fitted[..PREFIX_BYTES as usize].copy_from_slice(&(len as u64).to_le_bytes());
    }
    let taken = check(data);
    check(&fitted) || taken
}

fn check(file: &[u8]) -> bool {
    let own = ContainerLimits::safetensors();
    let network = ContainerReader::open(file, &ContainerLimits::default());
    let reader = match ContainerReader::open(file, &own) {
        Ok(reader) => reader,
        Err(error) => {
            assert!(network.is_err(), "the larger limits refuse: {error}");
            one_line(&error);
            return false;
        }
    };
    tiles(&reader, file);
    let opaque = |entry: HeaderEntry<'_>| entry.dtype().known().is_none();
    // The stock library knows only its own types.
    if !reader.meta().entries().any(opaque) {
        let stock = SafeTensors::deserialize(file).expect("a safetensors file");
        assert_eq!(stock.len(), reader.meta().entries().len());
    }
    let listed = list(&reader).tensors.len();
    assert_eq!(listed, reader.names().count());
    for tensor in reader.meta().tensors() {
        check_tensor(&reader, tensor.name());
    }
    let report = verify(&reader, VerifyDepth::Full, None).expect("memory can be read");
    report.problems.iter().for_each(one_line);
    again(&reader);
    true
}

/// A message for users stays on one line.
fn one_line(error: &TensorError) {
    let text = error.to_string();
    assert!(text.starts_with(error.code().as_str()), "{text}");
    assert!(!text.contains(char::is_control), "{text:?}");
}

/// Entries lie end to end from the end of the header to the end of the file.
fn tiles(reader: &ContainerReader<&[u8]>, file: &[u8]) {
    let meta = reader.meta();
    let len =
        header_len(file, file.len() as u64, &ContainerLimits::safetensors()).expect("it was read");
    assert_eq!(meta.data_start(), PREFIX_BYTES + len);
    let mut at = meta.data_start();
    for entry in meta.entries() {
        let range = entry.file_range();
        assert_eq!(range.start, at);
        at = range.end;
    }
    assert_eq!(at, file.len() as u64);
}

/// Every call has a result, be it an error.
fn check_tensor(reader: &ContainerReader<&[u8]>, name: &str) {
    let view = reader.view(name).expect("its bytes are in memory");
    let floats = view.to_f32();
    if let (Ok(floats), Some(dtype)) = (floats, view.dtype().known()) {
        assert_eq!(
            floats.len() as u64 * dtype.bits(),
            view.bytes().len() as u64 * 8
        );
    }
    if let Some(count) = view.shape().first() {
        let all = view.rows(0..*count);
        assert!(all.is_err() || all.is_ok_and(|all| all.bytes() == view.bytes()));
        assert!(view.rows(0..count.saturating_add(1)).is_err() || *count == u64::MAX);
    }
    match reader.tensor(name).expect("it is there").kind() {
        TensorKind::Struct(info) => {
            let records = reader.strukt(name).expect("the header was checked");
            assert_eq!(records.records().count() as u64, info.count());
            for record in records.records() {
                for field in records.fields() {
                    let by_path = record.get(&field.path);
                    assert_eq!(by_path.is_ok(), record.value(&field).is_ok());
                }
            }
            assert!(records.record(info.count()).is_err());
        }
        TensorKind::Blob(info) => {
            let items = reader.blob(name);
            for at in 0..info.count() {
                let one = reader.item(name, at);
                if let Ok(items) = &items {
                    let one = one.expect("the offsets rise");
                    assert_eq!(&*one, items.item(at).expect("it is there"));
                }
            }
            if let Ok(items) = items {
                let sum: usize = items.items().map(<[u8]>::len).sum();
                assert_eq!(sum, items.data().len());
            }
            assert!(reader.item(name, info.count()).is_err());
        }
        _ => {}
    }
}

/// A container that was read can be written, and is the same then. A plain file may have names that mean something in
/// a metatensor; a metatensor has none.
fn again(reader: &ContainerReader<&[u8]>) {
    let limits = ContainerLimits::safetensors();
    let (_, plain) = strip(reader, Cursor::new(Vec::new())).expect("any file can be stripped");
    let plain = plain.into_inner();
    let stripped = ContainerReader::open(&plain[..], &limits).expect("we wrote it");
    for entry in reader.meta().entries().filter(|entry| !entry.is_pad()) {
        let theirs = stripped.view(entry.name()).expect("it is kept");
        let mut ours = vec![0; theirs.bytes().len()];
        reader.read_into(&entry, 0, &mut ours).expect("as long");
        assert_eq!(theirs.bytes(), ours);
    }
    match rewrite(reader, Cursor::new(Vec::new()), RewriteOptions::default()) {
        Err(error) => assert_eq!(reader.meta().level(), 0, "{error}"),
        Ok((_, file)) => {
            let file = file.into_inner();
            let second = ContainerReader::open(&file[..], &limits).expect("we wrote it");
            let names = |reader: &ContainerReader<&[u8]>| -> Vec<String> {
                reader.names().map(str::to_owned).collect()
            };
            assert_eq!(names(reader), names(&second));
            // A rewritten file has hashes of its own.
            let report = verify(&second, VerifyDepth::Hash, None).expect("memory can be read");
            assert!(report.is_good(), "{:?}", report.problems);
        }
    }
}

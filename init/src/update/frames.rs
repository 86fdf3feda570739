//! The stream on which the node sends bundles: frames, read once and never more than one at a time.

use std::io::{self, ErrorKind, Read};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::progress::{StagingProgress, aborted};
use crate::control::{UPDATE_FRAME_ABORT, UPDATE_FRAME_BYTES_MAX};

/// Bytes of a frame's length.
const LENGTH_BYTES: usize = 4;

/// How the frames of a bundle ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FramesEnd {
    /// By a frame of length zero.
    Ended,
    /// The node gave the bundle up.
    Aborted,
    /// The stream has something else than frames, or more bytes than announced. Nothing behind it can be read.
    Broken(String),
}

/// The frames of one bundle, which read as its bytes.
#[derive(Debug)]
pub(crate) struct BundleFrameReader<R> {
    input: R,
    /// The next frame's length, as far as it was read.
    length: Vec<u8>,
    /// Bytes left of the frame that is being read.
    left: u32,
    end: Option<FramesEnd>,
    is_silent: bool,
    /// How long the node may be silent, beside one time-out of the stream.
    silence: Duration,
    announced: u64,
    progress: Arc<StagingProgress>,
    /// Whether the bytes are only read to their end.
    is_draining: bool,
}

impl<R: Read> BundleFrameReader<R> {
    /// The frames of a bundle that was announced with so many bytes.
    pub(crate) fn new(input: R, announced: u64, progress: Arc<StagingProgress>) -> Self {
        Self {
            input,
            length: Vec::with_capacity(LENGTH_BYTES),
            left: 0,
            end: None,
            is_silent: false,
            silence: Duration::ZERO,
            announced,
            progress,
            is_draining: false,
        }
    }

    /// The same for a node that may be silent for longer than the time-out of the stream. After each time-out the reader
    /// looks whether the bundle is still wanted.
    pub(crate) fn with_silence(mut self, silence: Duration) -> Self {
        self.silence = silence;
        self
    }

    /// How far the staging is, and whether it goes on.
    pub(crate) fn progress(&self) -> Arc<StagingProgress> {
        Arc::clone(&self.progress)
    }

    /// How the bundle ended, if its end was read.
    pub(crate) fn end(&self) -> Option<&FramesEnd> {
        self.end.as_ref()
    }

    /// Whether the node was silent for longer than the stream waits. The bundle is given up then, and its end is still
    /// to come.
    pub(crate) fn is_silent(&self) -> bool {
        self.is_silent
    }

    /// Reads to the end of the bundle, so that the next bundle begins with the stream. A silent node may take its time:
    /// it holds up only its own bundles.
    pub(crate) fn drain(&mut self) -> FramesEnd {
        let mut buffer = vec![0; UPDATE_FRAME_BYTES_MAX as usize];
        self.is_draining = true;
        loop {
            if let Some(end) = &self.end {
                return end.clone();
            }
            // An error is in `end` as well.
            let _ = self.read(&mut buffer);
        }
    }

    /// Reads the length of the next frame.
    fn begin(&mut self) -> io::Result<()> {
        while self.length.len() < LENGTH_BYTES {
            let mut missing = [0; LENGTH_BYTES];
            let missing = &mut missing[self.length.len()..];
            let read = self.receive(missing)?;
            self.length.extend_from_slice(&missing[..read]);
        }
        let length = self.length.drain(..);
        let length = length.fold(0, |length, byte| (length << 8) | u32::from(byte));
        match length {
            0 => self.end = Some(FramesEnd::Ended),
            UPDATE_FRAME_ABORT => {
                self.end = Some(FramesEnd::Aborted);
                return Err(aborted());
            }
            long if long > UPDATE_FRAME_BYTES_MAX => {
                let why = format!("a frame of {long} bytes, {UPDATE_FRAME_BYTES_MAX} at most");
                return Err(self.broken(why));
            }
            length => self.left = length,
        }
        Ok(())
    }

    /// Reads what the stream has. After its time-out the next call goes on at the same byte.
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let began = Instant::now();
        loop {
            return match self.input.read(buffer) {
                Ok(0) => Err(self.broken("the node closed it".to_owned())),
                Ok(read) => Ok(read),
                Err(error) => match error.kind() {
                    ErrorKind::Interrupted => continue,
                    ErrorKind::TimedOut | ErrorKind::WouldBlock => {
                        if self.progress.is_given_up() && !self.is_draining {
                            return Err(aborted());
                        }
                        if began.elapsed() < self.silence {
                            continue;
                        }
                        self.is_silent = true;
                        Err(io::Error::new(
                            ErrorKind::TimedOut,
                            "the node was silent for too long",
                        ))
                    }
                    _ => Err(self.broken(error.to_string())),
                },
            };
        }
    }

    fn broken(&mut self, why: String) -> io::Error {
        self.end = Some(FramesEnd::Broken(why.clone()));
        io::Error::other(why)
    }
}

impl<R: Read> Read for BundleFrameReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        // The next frame may be minutes away.
        if self.progress.is_given_up() && !self.is_draining {
            return Err(aborted());
        }
        if self.left == 0 && self.end.is_none() {
            self.begin()?;
        }
        match &self.end {
            Some(FramesEnd::Ended) => return Ok(0),
            Some(FramesEnd::Aborted) => return Err(aborted()),
            Some(FramesEnd::Broken(why)) => return Err(io::Error::other(why.clone())),
            None => {}
        }
        let length = buffer.len().min(self.left as usize);
        let length = self.receive(&mut buffer[..length])?;
        self.left -= length as u32;
        let sum = self.progress.count_read(length as u64);
        if sum > self.announced {
            return Err(self.broken(format!("more bytes than the announced {}", self.announced)));
        }
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use super::*;
    use crate::update::testing::framed;

    fn frames(bytes: &[u8], announced: u64) -> BundleFrameReader<&[u8]> {
        BundleFrameReader::new(bytes, announced, Arc::default())
    }

    #[test]
    fn a_bundle_is_read_and_the_next_one_begins_behind_it() {
        let long = vec![7; UPDATE_FRAME_BYTES_MAX as usize + 9];
        let mut stream = framed(&long, 70_000);
        stream.extend(framed(b"next", 3));
        let mut input = &stream[..];
        let mut first = BundleFrameReader::new(&mut input, long.len() as u64, Arc::default());
        let mut found = Vec::new();
        first.read_to_end(&mut found).expect("whole");
        assert!(found == long);
        assert_eq!(first.drain(), FramesEnd::Ended);
        let mut next = BundleFrameReader::new(&mut input, 4, Arc::default());
        let mut found = String::new();
        next.read_to_string(&mut found).expect("whole");
        assert_eq!(found, "next");
    }

    #[test]
    fn a_bundle_that_is_given_up_ends_in_an_error() {
        let mut stream = framed(b"begin", 5);
        stream.truncate(stream.len() - LENGTH_BYTES);
        stream.extend(UPDATE_FRAME_ABORT.to_be_bytes());
        stream.extend(framed(b"next", 4));
        let mut input = &stream[..];
        let mut given_up = BundleFrameReader::new(&mut input, 100, Arc::default());
        let error = given_up.read_to_end(&mut Vec::new()).expect_err("given up");
        assert_eq!(error.kind(), ErrorKind::ConnectionAborted);
        assert_eq!(given_up.drain(), FramesEnd::Aborted);
        assert_eq!(&input[LENGTH_BYTES..LENGTH_BYTES + 4], b"next");
    }

    #[test]
    fn what_is_no_frame_breaks_the_stream() {
        let long = (UPDATE_FRAME_BYTES_MAX + 1).to_be_bytes();
        for (bytes, announced, why) in [
            (&long[..], 9, "a frame of 65537 bytes, 65536 at most"),
            (&[0, 0], 9, "the node closed it"),
            (&[0, 0, 0, 2, 1], 9, "the node closed it"),
            (
                &[0, 0, 0, 2, 1, 1, 0, 0, 0, 0],
                1,
                "more bytes than the announced 1",
            ),
        ] {
            let mut frames = frames(bytes, announced);
            assert!(frames.read_to_end(&mut Vec::new()).is_err());
            assert_eq!(frames.drain(), FramesEnd::Broken(why.to_owned()));
        }
    }

    /// A node that is slow loses its bundle and nothing else.
    #[test]
    fn a_silent_node_can_end_its_bundle_later() {
        let (mut node, input) = UnixStream::pair().expect("a pair");
        let short = Duration::from_millis(20);
        input.set_read_timeout(Some(short)).expect("a limit");
        let long = framed(&[7; 1000], 600);
        for cut in [2, 300] {
            let mut frames = BundleFrameReader::new(&input, 1000, Arc::default());
            node.write_all(&long[..cut]).expect("room");
            let error = frames.read_to_end(&mut Vec::new()).expect_err("silent");
            assert_eq!(error.kind(), ErrorKind::TimedOut, "{cut}");
            assert!(frames.is_silent() && frames.end().is_none());
            let mut rest = long[cut..long.len() - LENGTH_BYTES].to_vec();
            rest.extend(UPDATE_FRAME_ABORT.to_be_bytes());
            rest.extend(framed(b"next", 4));
            node.write_all(&rest).expect("room");
            assert_eq!(frames.drain(), FramesEnd::Aborted, "{cut}");
            let mut next = BundleFrameReader::new(&input, 4, Arc::default());
            let mut found = String::new();
            next.read_to_string(&mut found).expect("whole");
            assert_eq!(found, "next");
        }
    }

    /// The stream waits again and again for the end of a bundle that was given up.
    #[test]
    fn a_bundle_is_drained_however_often_the_node_is_silent() {
        struct Halting(Vec<u8>, bool);
        impl Read for Halting {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                self.1 = !self.1;
                match self.1 {
                    true => Err(ErrorKind::WouldBlock.into()),
                    false => {
                        buffer[0] = self.0.remove(0);
                        Ok(1)
                    }
                }
            }
        }
        let mut frames =
            BundleFrameReader::new(Halting(framed(&[1; 9], 4), false), 9, Arc::default());
        assert_eq!(frames.drain(), FramesEnd::Ended);
    }

    /// The node gives the bundle up beside the stream, whose end it sends as well.
    #[test]
    fn a_bundle_that_was_given_up_is_only_read_to_its_end() {
        let progress = Arc::new(StagingProgress::default());
        let stream = framed(&[1; 1000], 100);
        let mut frames = BundleFrameReader::new(&stream[..], 1000, Arc::clone(&progress));
        frames.read_exact(&mut [0; 300]).expect("within");
        progress.give_up();
        let error = frames.read(&mut [0; 1]).expect_err("given up");
        assert_eq!(error.kind(), ErrorKind::ConnectionAborted);
        assert_eq!(progress.read(), 300);
        assert_eq!(frames.drain(), FramesEnd::Ended);
    }

    #[test]
    fn what_was_read_is_counted() {
        let progress = Arc::new(StagingProgress::default());
        let stream = framed(&[1; 1000], 100);
        let mut frames = BundleFrameReader::new(&stream[..], 1000, Arc::clone(&progress));
        frames.read_exact(&mut [0; 300]).expect("within");
        assert_eq!(progress.read(), 300);
        assert_eq!(frames.drain(), FramesEnd::Ended);
        assert_eq!(progress.read(), 1000);
    }
}

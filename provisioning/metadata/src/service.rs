//! The questions of each metadata service, as its vendor documents them.

use alknet_core::config::CONFIG_BYTES_MAX;
use alknet_provisioning::MetadataService;
use data_encoding::BASE64;
use zeroize::Zeroizing;

use crate::http::{HttpRequest, MetadataResponse};
use crate::{MetadataAccess, MetadataError};

/// Most bytes of a response with user data: the longest document in base64, which Azure uses, and
/// some line ends.
pub const USER_DATA_BYTES_MAX: usize = CONFIG_BYTES_MAX / 3 * 4 + 4096;
/// Most bytes of a token of EC2, which has 56 today.
const TOKEN_BYTES_MAX: usize = 1024;
/// How long EC2's token is asked to be valid, in seconds: one request follows.
const TOKEN_SECONDS: &str = "60";
/// What compressed content begins with (RFC 1952, 2.3.1).
const GZIP: &[u8] = &[0x1f, 0x8b];

/// The first letters of content for cloud-init, and what it is.
const FOR_CLOUD_INIT: [(&str, &str); 10] = [
    ("#!", "a script"),
    ("## template: jinja", "a template for cloud-init"),
    ("#boothook", "a script"),
    ("#cloud-boothook", "a script"),
    ("#cloud-config", "a configuration of cloud-init"),
    ("#include", "a list of addresses for cloud-init"),
    ("#part-handler", "a program for cloud-init"),
    ("<powershell>", "a script"),
    ("Content-Type:", "a MIME message for cloud-init"),
    ("MIME-Version:", "a MIME message for cloud-init"),
];

/// Asks once.
pub(crate) fn fetch_once(
    service: MetadataService,
    access: &MetadataAccess,
) -> Result<Option<Zeroizing<Vec<u8>>>, MetadataError> {
    let get = |path: &'static str, fields: &[(&'static str, &str)]| {
        let request = HttpRequest {
            method: "GET",
            path,
            fields,
            body: "",
            bytes_max: USER_DATA_BYTES_MAX,
        };
        access.send_request(access.metadata, &request)
    };
    let response = match service {
        MetadataService::Azure => get(
            "/metadata/instance/compute/userData?api-version=2021-01-01&format=text",
            &[("Metadata", "true")],
        ),
        MetadataService::DigitalOcean => get("/metadata/v1/user-data", &[]),
        MetadataService::Ec2 => {
            let token = token(access)?;
            get(
                "/latest/user-data",
                &[("X-aws-ec2-metadata-token", token.as_str())],
            )
        }
        MetadataService::Gce => get(
            "/computeMetadata/v1/instance/attributes/user-data?alt=text",
            &[("Metadata-Flavor", "Google")],
        ),
        MetadataService::Hetzner => get("/hetzner/v1/userdata", &[]),
        _ => get("/openstack/latest/user_data", &[]),
    }?;
    read_user_data(service, &response)
}

/// A token of EC2 (IMDSv2), which proves that this client can send a request of its own, with a
/// method and a header field that no server makes for an attacker.
fn token(access: &MetadataAccess) -> Result<Zeroizing<String>, MetadataError> {
    let request = HttpRequest {
        method: "PUT",
        path: "/latest/api/token",
        fields: &[("X-aws-ec2-metadata-token-ttl-seconds", TOKEN_SECONDS)],
        body: "",
        bytes_max: TOKEN_BYTES_MAX,
    };
    let response = access.send_request(access.metadata, &request)?;
    match response.status() {
        200 => {}
        status @ 300..400 => return Err(MetadataError::Redirect(status)),
        403 => return Err(MetadataError::NoToken("the service is switched off")),
        404 | 405 => return Err(MetadataError::NoToken("it knows no tokens")),
        status => return Err(MetadataError::Status(status)),
    }
    let token = std::str::from_utf8(response.body())
        .unwrap_or_default()
        .trim();
    // The token becomes a header field, so it must be one word.
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(MetadataError::NoToken("what it gave is no token"));
    }
    Ok(Zeroizing::new(token.to_owned()))
}

/// The user data in a response of `service`. `None` if it has no user data.
///
/// ```
/// use alknet_metadata::{MetadataResponse, USER_DATA_BYTES_MAX, read_user_data};
/// use alknet_provisioning::MetadataService;
///
/// let mut response = &b"HTTP/1.1 200 OK\r\n\r\nversion = 1\n"[..];
/// let response = MetadataResponse::receive(&mut response, USER_DATA_BYTES_MAX)?;
/// let document = read_user_data(MetadataService::Hetzner, &response)?;
/// let document = document.expect("the response has some");
/// assert_eq!(document.as_slice(), b"version = 1\n");
/// # Ok::<(), alknet_metadata::MetadataError>(())
/// ```
///
/// # Errors
/// [`MetadataError`] for another status than 200, 204 and 404, and for content that is no document.
pub fn read_user_data(
    service: MetadataService,
    response: &MetadataResponse,
) -> Result<Option<Zeroizing<Vec<u8>>>, MetadataError> {
    match response.status() {
        200 => {}
        204 | 404 => return Ok(None),
        status @ 300..400 => return Err(MetadataError::Redirect(status)),
        status => return Err(MetadataError::Status(status)),
    }
    // Google documents the field as the proof that its metadata server answered.
    if service == MetadataService::Gce && response.field("metadata-flavor") != Some("Google") {
        return Err(MetadataError::NoFlavor);
    }
    let data = match service {
        MetadataService::Azure => decode(response.body())?,
        _ => Zeroizing::new(response.body().to_vec()),
    };
    if data.trim_ascii().is_empty() {
        return Ok(None);
    }
    match other_format(&data) {
        Some(what) => Err(MetadataError::NotADocument(what)),
        None => Ok(Some(data)),
    }
}

/// Base64 (RFC 4648, 4), which may be broken into lines.
fn decode(text: &[u8]) -> Result<Zeroizing<Vec<u8>>, MetadataError> {
    let mut plain = Zeroizing::new(Vec::with_capacity(text.len()));
    plain.extend(text.iter().filter(|byte| !byte.is_ascii_whitespace()));
    let data = BASE64.decode(&plain).map_err(|_| MetadataError::Base64)?;
    Ok(Zeroizing::new(data))
}

/// What the data are, if they are known not to be an alknet document.
fn other_format(data: &[u8]) -> Option<&'static str> {
    if data.starts_with(GZIP) {
        return Some("compressed with gzip");
    }
    if data.len() > CONFIG_BYTES_MAX {
        return Some("longer than 65536 bytes");
    }
    let data = data.trim_ascii_start();
    let begins = |text: &str| {
        let head = data.get(..text.len());
        head.is_some_and(|head| head.eq_ignore_ascii_case(text.as_bytes()))
    };
    let mut known = FOR_CLOUD_INIT.into_iter();
    known.find_map(|(text, what)| begins(text).then_some(what))
}

#[cfg(test)]
mod tests {
    use std::io;

    use proptest::prelude::*;

    use super::*;

    fn read(
        service: MetadataService,
        response: &[u8],
    ) -> Result<Option<Zeroizing<Vec<u8>>>, MetadataError> {
        let response =
            MetadataResponse::receive(&mut io::Cursor::new(response), USER_DATA_BYTES_MAX)?;
        read_user_data(service, &response)
    }

    fn refusal(service: MetadataService, response: &str) -> String {
        let refused = read(service, response.as_bytes());
        refused.expect_err(response).to_string()
    }

    #[test]
    fn missing_and_empty_user_data_are_no_document() {
        for response in [
            "HTTP/1.1 404 Not Found\r\n\r\nno such thing",
            "HTTP/1.1 204 No Content\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\n\r\n \r\n\t",
        ] {
            for service in [MetadataService::Hetzner, MetadataService::Ec2] {
                let found = read(service, response.as_bytes()).expect("a response");
                assert_eq!(found, None, "{response}");
            }
        }
    }

    #[test]
    fn content_for_other_programs_is_refused_by_its_name() {
        for (content, what) in [
            (
                "#cloud-config\nhostname: x\n",
                "a configuration of cloud-init",
            ),
            ("\n#CLOUD-CONFIG\n", "a configuration of cloud-init"),
            ("#!/bin/sh\nreboot\n", "a script"),
            ("\u{1f}\u{8b}", "compressed"),
            (
                "Content-Type: multipart/mixed; boundary=x\n",
                "a MIME message",
            ),
            ("MIME-Version: 1.0\n", "a MIME message"),
        ] {
            let mut response = b"HTTP/1.1 200 OK\r\n\r\n".to_vec();
            // Each character stands for the byte of its number.
            response.extend(content.chars().map(|c| u8::try_from(c).expect("a byte")));
            let error = read(MetadataService::OpenStack, &response).expect_err(content);
            assert!(error.is_final(), "{error}");
            let text = error.to_string();
            assert!(text.contains(what), "{text}");
            assert!(text.ends_with("not an alknet document"), "{text}");
        }
    }

    #[test]
    fn a_redirect_and_other_codes_are_refusals() {
        for (response, text) in [
            (
                "HTTP/1.1 302 Found\r\nLocation: http://192.0.2.1/\r\n\r\n",
                "it redirects (status 302), and no redirect is followed",
            ),
            ("HTTP/1.1 500 Oops\r\n\r\n", "it refused with status 500"),
            ("HTTP/1.1 401 No\r\n\r\n", "it refused with status 401"),
        ] {
            assert_eq!(refusal(MetadataService::DigitalOcean, response), text);
        }
    }

    #[test]
    fn google_has_to_answer_with_its_flavor() {
        let response = |field: &str| format!("HTTP/1.1 200 OK\r\n{field}\r\n\r\nversion = 1\n");
        let right = response("Metadata-Flavor: Google");
        let found = read(MetadataService::Gce, right.as_bytes()).expect("a response");
        assert_eq!(found.expect("a document").as_slice(), b"version = 1\n");
        for field in ["Server: x", "Metadata-Flavor: Googol"] {
            let text = refusal(MetadataService::Gce, &response(field));
            assert!(text.contains("Metadata-Flavor: Google"), "{text}");
        }
    }

    #[test]
    fn azure_encodes_its_user_data() {
        let response = |content: &str| format!("HTTP/1.1 200 OK\r\n\r\n{content}");
        let encoded = BASE64.encode(b"version = 1\n");
        let broken = format!("{}\r\n{}\n", &encoded[..4], &encoded[4..]);
        for content in [encoded, broken] {
            let found = read(MetadataService::Azure, response(&content).as_bytes());
            let found = found.expect("a response").expect("a document");
            assert_eq!(found.as_slice(), b"version = 1\n");
        }
        let text = refusal(MetadataService::Azure, &response("version = 1"));
        assert_eq!(text, "its user data are no base64");
    }

    #[test]
    fn the_longest_document_passes_and_one_byte_more_does_not() {
        for (length, passes) in [(CONFIG_BYTES_MAX, true), (CONFIG_BYTES_MAX + 1, false)] {
            let document = vec![b'a'; length];
            let mut plain = b"HTTP/1.1 200 OK\r\n\r\n".to_vec();
            let mut encoded = plain.clone();
            plain.extend(&document);
            encoded.extend(BASE64.encode(&document).as_bytes());
            for (service, response) in [
                (MetadataService::Hetzner, plain),
                (MetadataService::Azure, encoded),
            ] {
                let found = read(service, &response);
                assert_eq!(found.is_ok(), passes, "{service} {length}");
                assert!(found.err().is_none_or(|error| error.is_final()));
            }
        }
    }

    proptest! {
        #[test]
        fn any_content_is_read(content in prop::collection::vec(any::<u8>(), 0..60), at in 0_usize..6) {
            let mut response = b"HTTP/1.1 200 OK\r\nMetadata-Flavor: Google\r\n\r\n".to_vec();
            response.extend(content);
            let _ = read(MetadataService::ALL[at], &response);
        }
    }
}

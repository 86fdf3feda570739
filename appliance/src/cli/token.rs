//! `alknet token`: makes a bearer token, and what a node keeps of it.

use alknet_core::AuthToken;
use serde_json::json;

use super::{Exit, Failure, output};

/// Makes one. It is shown here and nowhere else.
pub(crate) fn run(json: bool) -> Result<Exit, Failure> {
    let token = AuthToken::generate().map_err(Failure::local)?;
    let hash = token.hash().map_err(Failure::local)?;
    let entry = hash.to_string();
    let sha256 = &entry[hash.key_id.as_str().len() + 1..];
    if json {
        output::json_line(&json!({
            "token": token.expose(),
            "key_id": hash.key_id,
            "sha256": sha256,
            "hash": entry,
        }))?;
        return Ok(Exit::Ok);
    }
    output::line(token.expose())?;
    output::line("")?;
    output::line("Give the line above to whoever is to use it; it is not shown again.")?;
    output::line("The node gets one of these, for a peer or for a program:")?;
    output::line("")?;
    output::line(&format!("[[peers]]\ntokens = [\"{entry}\"]"))?;
    output::line("")?;
    output::line(&format!(
        "[[api_keys]]\nkey_id = \"{}\"\nsha256 = \"{sha256}\"",
        hash.key_id
    ))?;
    Ok(Exit::Ok)
}

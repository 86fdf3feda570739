//! URLs by the URL Standard.

use rquickjs::{Array, Ctx, Function, Object, Result};
use url::{Url, form_urlencoded, quirks};

pub(super) fn install<'js>(ctx: &Ctx<'js>, native: &Object<'js>) -> Result<()> {
    native.set("urlParse", Function::new(ctx.clone(), parse)?)?;
    native.set("urlSet", Function::new(ctx.clone(), set)?)?;
    native.set("formParse", Function::new(ctx.clone(), form_parse)?)?;
    native.set("formWrite", Function::new(ctx.clone(), form_write)?)
}

fn parse<'js>(ctx: Ctx<'js>, url: String, base: Option<String>) -> Result<Option<Array<'js>>> {
    let base = base.map(|base| Url::parse(&base));
    let parsed = match &base {
        // By the URL Standard's API URL parser, an invalid base fails even if the URL needs none.
        Some(Err(_)) => None,
        Some(Ok(base)) => base.join(&url).ok(),
        None => Url::parse(&url).ok(),
    };
    parsed.map(|url| parts(&ctx, &url)).transpose()
}

/// The URL with one part changed. As in the standard, an invalid value changes nothing.
fn set<'js>(
    ctx: Ctx<'js>,
    href: String,
    name: String,
    value: String,
) -> Result<Option<Array<'js>>> {
    let Ok(mut url) = Url::parse(&href) else {
        return Ok(None);
    };
    let done = match name.as_str() {
        "href" => match Url::parse(&value) {
            Ok(other) => {
                url = other;
                Ok(())
            }
            Err(_) => Err(()),
        },
        "protocol" => quirks::set_protocol(&mut url, &value),
        "username" => quirks::set_username(&mut url, &value),
        "password" => quirks::set_password(&mut url, &value),
        "host" => quirks::set_host(&mut url, &value),
        "hostname" => quirks::set_hostname(&mut url, &value),
        "port" => quirks::set_port(&mut url, &value),
        "pathname" => {
            quirks::set_pathname(&mut url, &value);
            Ok(())
        }
        "search" => {
            quirks::set_search(&mut url, &value);
            Ok(())
        }
        "hash" => {
            quirks::set_hash(&mut url, &value);
            Ok(())
        }
        _ => Err(()),
    };
    match done {
        Ok(()) => parts(&ctx, &url).map(Some),
        Err(()) => Ok(None),
    }
}

/// The parts in the order in which `prelude/text.js` names them.
fn parts<'js>(ctx: &Ctx<'js>, url: &Url) -> Result<Array<'js>> {
    let origin = quirks::origin(url);
    let all = [
        quirks::href(url),
        quirks::protocol(url),
        quirks::username(url),
        quirks::password(url),
        quirks::host(url),
        quirks::hostname(url),
        quirks::port(url),
        quirks::pathname(url),
        quirks::search(url),
        quirks::hash(url),
        origin.as_str(),
    ];
    let array = Array::new(ctx.clone())?;
    for (index, part) in all.into_iter().enumerate() {
        array.set(index, part)?;
    }
    Ok(array)
}

fn form_parse(ctx: Ctx<'_>, text: String) -> Result<Array<'_>> {
    let pairs = Array::new(ctx.clone())?;
    for (index, (name, value)) in form_urlencoded::parse(text.as_bytes()).enumerate() {
        let pair = Array::new(ctx.clone())?;
        pair.set(0, name.as_ref())?;
        pair.set(1, value.as_ref())?;
        pairs.set(index, pair)?;
    }
    Ok(pairs)
}

fn form_write(pairs: Vec<Vec<String>>) -> String {
    let mut text = form_urlencoded::Serializer::new(String::new());
    for pair in &pairs {
        if let [name, value] = pair.as_slice() {
            text.append_pair(name, value);
        }
    }
    text.finish()
}

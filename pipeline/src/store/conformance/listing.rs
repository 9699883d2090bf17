//! Listings: byte order, whole, a page at a time.

use futures_util::future::join_all;

use super::{Bed, Outcome, doing, ensure};

/// Creates objects under `folder`, many at a time; each holds its name.
async fn fill(bed: &Bed<'_>, folder: &str, names: &[String]) -> Outcome {
    for some in names.chunks(32) {
        let all = some.iter().map(async |name| {
            let key = bed.key(&format!("{folder}/{name}"));
            bed.store.create(&key, name.clone().into_bytes().into()).await
        });
        for done in join_all(all).await {
            doing("create", done)?;
        }
    }
    Ok(())
}

/// All keys of a listing with the suite's folder taken off, and how many pages they came in.
async fn listed(bed: &Bed<'_>, prefix: &str, after: Option<&str>) -> Result<(Vec<String>, usize), String> {
    let (mut keys, mut pages): (Vec<String>, _) = (Vec::new(), 0);
    let prefix = bed.key(prefix);
    let mut after = after.map(|a| bed.key(a));
    loop {
        let page = doing("list", bed.store.list(&prefix, after.as_deref()).await)?;
        pages += 1;
        ensure!(page.objects.len() <= 1000, "a page of {} objects", page.objects.len());
        for object in &page.objects {
            let name = object.key.strip_prefix(&format!("{}/", bed.root));
            let name = name.ok_or_else(|| format!("{} is listed under {prefix}", object.key))?;
            let size = name.split_once('/').map_or(0, |(_, n)| n.len());
            ensure!(object.size == size as u64, "{name} of {size} bytes is listed with {}", object.size);
            keys.push(name.to_owned());
        }
        let Some(last) = page.objects.last().filter(|_| page.more) else {
            ensure!(!page.more, "an empty page says that more follows");
            return Ok((keys, pages));
        };
        after = Some(last.key.clone());
    }
}

fn same(what: &str, found: &[String], want: &[String]) -> Outcome {
    ensure!(found == want, "{what}: listed {found:?}, wanted {want:?}");
    Ok(())
}

pub(super) async fn order_prefix_and_after(bed: &Bed<'_>) -> Outcome {
    // '-' and '.' come before '/', digits and letters after it: whole keys are compared, not components.
    let names = [
        "a/x",
        "a.b",
        "a-b/c",
        "a/y/z",
        "a0",
        "a/x0",
        "b",
        "A/z",
        "a_",
        "packs/00/1",
        "packs/0a/1",
        "packs/ff/1",
    ];
    let names = names.map(String::from);
    fill(bed, "order", &names).await?;
    let mut want: Vec<String> = names.iter().map(|n| format!("order/{n}")).collect();
    want.sort();
    for prefix in [
        "order/",
        "order/a",
        "order/a/",
        "order/a/x",
        "order/packs/0",
        "order/packs/00/",
        "order/none",
        "order/b/",
    ] {
        let some: Vec<_> = want.iter().filter(|k| k.starts_with(prefix)).cloned().collect();
        same(prefix, &listed(bed, prefix, None).await?.0, &some)?;
    }
    for after in
        ["order/a", "order/a-b/c", "order/a/x", "order/a/x0", "order/a/y", "order/packs/00/1", "order/zzz"]
    {
        let some: Vec<_> = want.iter().filter(|k| k.as_str() > after).cloned().collect();
        same(&format!("after {after}"), &listed(bed, "order/", Some(after)).await?.0, &some)?;
    }
    same("after a key before the prefix", &listed(bed, "order/packs/", Some("order/a")).await?.0, &want[9..])
}

pub(super) async fn more_than_a_page(bed: &Bed<'_>) -> Outcome {
    let mut names: Vec<String> = (0..1050).map(|i| format!("{:02x}/{i:04}", i * 37 % 16)).collect();
    fill(bed, "many", &names).await?;
    names.sort();
    let want: Vec<String> = names.iter().map(|n| format!("many/{n}")).collect();
    let (found, pages) = listed(bed, "many/", None).await?;
    same("everything", &found, &want)?;
    ensure!(pages >= 2, "1050 objects came in one page");
    let after = want[40].clone();
    same("after the 41st", &listed(bed, "many/", Some(&after)).await?.0, &want[41..])?;
    let some: Vec<_> = want.iter().filter(|k| k.starts_with("many/0")).cloned().collect();
    same("mid-component", &listed(bed, "many/0", None).await?.0, &some)
}

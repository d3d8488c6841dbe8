//! What a buffer is for, as far as the code tells: a column of the audit's tables.

use crate::api::create::CreateKind;
use crate::classify::Verdict;
use crate::flow::attribute::Buffer;

pub(crate) fn purpose(buffer: &Buffer<'_>, verdict: &Verdict) -> String {
    if buffer.site.kind == CreateKind::NoCopy {
        return "Alias of host memory (zero-copy)".into();
    }
    if verdict.unused {
        return "Reserved (unused in code)".into();
    }
    if let Some(constant) = buffer.bytes.constant() {
        let mut names = constant.names.clone();
        names.dedup();
        return match names.as_slice() {
            [] => "Constant".into(),
            [one] if verdict.inline => format!("Constant {one} parameter"),
            [one] => format!("Constant {one}"),
            many => {
                let shown: Vec<&str> = many.iter().take(6).copied().collect();
                let more = if many.len() > 6 { ", …" } else { "" };
                format!("Constant params ({}{more})", shown.join(", "))
            }
        };
    }
    if let Some((kernel, argument)) = buffer.facts.bound.first() {
        let also = match buffer.facts.bound.len() {
            1 => String::new(),
            n => format!(" and {} more", n - 1),
        };
        let role = match (buffer.facts.device_reads, buffer.facts.device_writes) {
            (true, true) => "State",
            (false, true) => "Output",
            _ => "Input",
        };
        return format!("{role} `{argument}` of `{kernel}`{also}");
    }
    match buffer.site.kind {
        CreateKind::Bytes => "Host data".into(),
        _ if buffer.facts.blit_source && buffer.facts.host_writes => "Staging".into(),
        _ if buffer.facts.blit_source && buffer.facts.device_writes => "Copied by blits".into(),
        _ => "Not known".into(),
    }
}

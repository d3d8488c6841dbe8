//! Tensors and host arrays: what moves them between host and device.
//!
//! Python: PyTorch (MPS and CUDA), numpy, MLX. Rust: candle. The facts are those of the
//! libraries' documentation: `Tensor.cpu()` copies unless the tensor is there already,
//! `torch.from_numpy` shares memory, `Tensor.numpy()` shares memory and refuses device tensors,
//! `Tensor.item()` waits for the device.

use std::sync::Arc;

use super::constant::{constant_name, size_of};
use super::eval::Eval;
use super::value::{Atom, Constant, TensorPlace, Value};
use crate::ir::{Call, Expr, ExprKind, Language, Span};
use crate::report::Direction;
use crate::rules::Code;

impl<'s> Eval<'_, 's> {
    /// Handles calls on tensors and host arrays; the value of the call if it is one.
    pub(crate) fn host_data_call(
        &mut self,
        call: &Call<'s>,
        receiver: &Value<'s>,
        args: &[Value<'s>],
        span: Span,
    ) -> Option<Value<'s>> {
        if self.wait_call(call, span) {
            return Some(Value::UNKNOWN);
        }
        match self.language {
            Language::Python => self.python_call(call, receiver, args, span),
            Language::Rust => self.rust_call(call, receiver, args, span),
            Language::Swift | Language::ObjectiveC | Language::ObjectiveCpp | Language::Cpp => {
                self.c_like_call(call, args, span)
            }
            Language::Metal => None,
        }
    }

    fn c_like_call(
        &mut self,
        call: &Call<'s>,
        args: &[Value<'s>],
        span: Span,
    ) -> Option<Value<'s>> {
        // `Array(UnsafeBufferPointer(start: buffer.contents(), count: n))` copies.
        let array = matches!(call.name.as_ref(), "Array" | "Data" | "vector" | "ContiguousArray");
        let first = args.first().filter(|a| array && a.is_view())?;
        let first = first.clone();
        self.emit(&first, super::summary::Touch::HostRead, span, true);
        self.copy(Code::MC010, span).what =
            Some(format!("`{}` copies a buffer's contents", call.name));
        Some(Value::of(Atom::HostArray))
    }

    // ---- Python ----

    fn uses(&self, modules: &[&str]) -> bool {
        self.project.imports_any(self.file, modules)
    }

    fn python_call(
        &mut self,
        call: &Call<'s>,
        receiver: &Value<'s>,
        args: &[Value<'s>],
        span: Span,
    ) -> Option<Value<'s>> {
        let module = call.receiver.as_ref().and_then(|r| match r.kind {
            ExprKind::Name(name) => Some(name),
            ExprKind::Field(_, name) => Some(name),
            _ => None,
        });
        match module {
            _ if outermost(call) == Some("np") || outermost(call) == Some("numpy") => {
                return self.numpy_call(call, args, span);
            }
            Some("torch") => return self.torch_call(call, args, span),
            Some("mps" | "cuda") if call.name == "synchronize" => {
                self.copy(Code::MC017, span).what =
                    Some("waits for everything on the device".into());
                return Some(Value::UNKNOWN);
            }
            Some("mx" | "mlx" | "core") if self.uses(&["mlx"]) => {
                return self.mlx_call(call, args, span);
            }
            Some("struct") if call.name == "pack" => return Some(struct_pack(call)),
            Some("ctypes")
                if matches!(call.name.as_ref(), "c_void_p" | "cast" | "byref" | "pointer") =>
            {
                return args.first().cloned();
            }
            Some("ctypes") if call.name.starts_with("c_") => {
                let names = call.args.iter().filter_map(|a| constant_name(&a.value)).collect();
                let constant = Constant { names, bytes: size_of(&call.name), by_address: false };
                return Some(Value::of(Atom::Constant(Arc::new(constant))));
            }
            _ => {}
        }
        self.tensor_method(call, receiver, args, span)
    }

    fn numpy_call(&mut self, call: &Call<'s>, args: &[Value<'s>], span: Span) -> Option<Value<'s>> {
        let name = call.name.as_ref();
        if matches!(name, "frombuffer" | "asarray" | "ascontiguousarray")
            && args.first().is_some_and(Value::has_place)
        {
            return if name == "frombuffer" { None } else { Some(args[0].clone()) };
        }
        match name {
            "array" | "asarray" | "ascontiguousarray" | "uint32" | "int32" | "float32"
            | "uint64" | "int64" | "float16" | "uint8" | "uint16" | "int8" | "int16" => {
                let dtype = match name {
                    "array" | "asarray" | "ascontiguousarray" => {
                        let keyword = call.args.iter().find(|a| a.label == Some("dtype"));
                        let second = call.args.get(1).filter(|a| a.label.is_none());
                        keyword.or(second).and_then(|a| dtype_size(&a.value))
                    }
                    scalar => size_of(scalar),
                };
                let first = args.first()?;
                if let Some(constant) = first.constant() {
                    let count = first.atoms().iter().find_map(|a| match a {
                        Atom::List(items) => Some(items.len() as u64),
                        _ => None,
                    });
                    let bytes = constant.bytes.or_else(|| Some(dtype? * count.unwrap_or(1)));
                    let constant =
                        Constant { names: constant.names.clone(), bytes, by_address: false };
                    return Some(Value::of(Atom::Constant(Arc::new(constant))));
                }
                // A scalar wrapped in an array: `np.array(M, dtype=np.uint32)`, `np.uint32(M)`.
                let plain = !first.is_host_array() && first.tensor().is_none() && !first.is_view();
                if name != "array" && name != "asarray" && name != "ascontiguousarray" {
                    let names = call.args.iter().filter_map(|a| constant_name(&a.value)).collect();
                    return Some(Value::of(Atom::Constant(Arc::new(Constant {
                        names,
                        bytes: dtype,
                        by_address: false,
                    }))));
                }
                let of_tensor = first.tensor().is_some();
                let again = first.is_host_array() || first.is_view();
                let round_trip = name == "array" && (of_tensor || again);
                // In MLX code a local that is called like a device array most often is one.
                let local = call.args.first().is_some_and(|a| match a.value.kind {
                    ExprKind::Name(name) => {
                        let tensor = [
                            "logit", "hidden", "prob", "embed", "latent", "score", "tensor",
                            "feature",
                        ];
                        self.env.get(name).is_some_and(Value::is_unknown)
                            && tensor.iter().any(|w| name.contains(w))
                    }
                    _ => false,
                });
                if round_trip || name == "array" && plain && self.uses(&["mlx"]) && local {
                    let copy = self.copy(Code::MC012, span);
                    copy.what = Some(format!("`np.{name}` copies its argument into a new array"));
                    copy.sure = round_trip;
                    if of_tensor || !again {
                        copy.direction = Some(Direction::DeviceToHost);
                    }
                }
                Some(Value::of(Atom::HostArray))
            }
            "frombuffer" => None,
            "copy" => {
                let copy = self.copy(Code::MC012, span);
                copy.what = Some("`np.copy` copies its argument".into());
                Some(Value::of(Atom::HostArray))
            }
            "copyto" => None,
            _ => {
                for value in args {
                    if value.is_view() {
                        self.emit(value, super::summary::Touch::HostRead, span, true);
                    }
                }
                Some(Value::of(Atom::HostArray))
            }
        }
    }

    fn torch_call(&mut self, call: &Call<'s>, args: &[Value<'s>], span: Span) -> Option<Value<'s>> {
        let device = call.args.iter().find(|a| a.label == Some("device")).map(|a| target(&a.value));
        match call.name.as_ref() {
            "from_numpy" => {
                let copied = call.args.first().map(|a| &a.value);
                if let Some(ExprKind::Call(inner)) = copied.map(|e| &e.kind)
                    && inner.name == "copy"
                    && inner.receiver.is_some()
                {
                    let at = copied.map_or(span, |e| e.span);
                    self.copy(Code::MC012, at).what = Some(
                        "`.copy()` copies the array, which `torch.from_numpy` could share".into(),
                    );
                }
                if args.first().is_some_and(Value::is_view) {
                    self.emit(&args[0], super::summary::Touch::HostRead, span, true);
                }
                Some(Value::of(Atom::Tensor(TensorPlace::Host)))
            }
            "tensor" | "as_tensor" | "asarray" => {
                let from_tensor =
                    args.first().is_some_and(|a| a.tensor() == Some(TensorPlace::Device));
                match device {
                    Some(Target::Host) | None => Some(Value::of(Atom::Tensor(TensorPlace::Host))),
                    Some(Target::Device | Target::Unclear) if !from_tensor => {
                        let copy = self.copy(Code::MC007, span);
                        copy.what =
                            Some(format!("`torch.{}` copies host data to the device", call.name));
                        copy.sure = matches!(device, Some(Target::Device));
                        Some(Value::of(Atom::Tensor(TensorPlace::Device)))
                    }
                    _ => Some(Value::of(Atom::Tensor(TensorPlace::Device))),
                }
            }
            "empty" | "zeros" | "ones" | "full" | "randn" | "rand" | "randint" | "arange"
            | "linspace" | "eye" => Some(Value::of(Atom::Tensor(match device {
                Some(Target::Device) => TensorPlace::Device,
                Some(Target::Unclear) => TensorPlace::Unknown,
                Some(Target::Host) | None => TensorPlace::Host,
            }))),
            "device" | "load" | "no_grad" | "inference_mode" | "manual_seed" | "compile" => None,
            _ => {
                let place = args.iter().find_map(Value::tensor)?;
                Some(Value::of(Atom::Tensor(place)))
            }
        }
    }

    fn mlx_call(&mut self, call: &Call<'s>, args: &[Value<'s>], span: Span) -> Option<Value<'s>> {
        match call.name.as_ref() {
            "array" => {
                let first = args.first()?;
                if first.is_host_array() && first.constant().is_none() {
                    self.copy(Code::MC007, span).what = Some("`mx.array` copies host data".into());
                }
                Some(Value::of(Atom::Tensor(TensorPlace::Device)))
            }
            "synchronize" | "eval" => {
                let copy = self.copy(Code::MC017, span);
                copy.what = Some(format!("`mx.{}` waits for the device", call.name));
                if call.name == "eval" {
                    copy.avoidable = Some(false);
                }
                Some(Value::UNKNOWN)
            }
            _ => Some(Value::of(Atom::Tensor(TensorPlace::Device))),
        }
    }

    fn tensor_method(
        &mut self,
        call: &Call<'s>,
        receiver: &Value<'s>,
        args: &[Value<'s>],
        span: Span,
    ) -> Option<Value<'s>> {
        call.receiver.as_ref()?;
        let place = receiver.tensor();
        let tensors = self.uses(&["torch", "mlx", "tinygrad", "jax"]);
        let known_host = place == Some(TensorPlace::Host) || receiver.is_host_array();
        let at =
            Span { start: call.name_span.start.saturating_sub(1).max(span.start), end: span.end };
        match call.name.as_ref() {
            "cpu" if args.is_empty() && tensors => {
                if place != Some(TensorPlace::Host) {
                    let copy = self.copy(Code::MC003, at);
                    copy.what = Some("`.cpu()` copies a device tensor to host memory".into());
                    copy.sure = place == Some(TensorPlace::Device);
                }
                Some(Value::of(Atom::Tensor(TensorPlace::Host)))
            }
            "cuda" | "mps" if tensors && args.len() <= 1 => {
                self.sent_to_device(call, receiver, at);
                Some(Value::of(Atom::Tensor(TensorPlace::Device)))
            }
            "to" if tensors => self.moved(call, receiver, at),
            "numpy" if args.is_empty() => {
                // After `.cpu()` the array shares the copy's memory: one copy, reported there.
                if !known_host && tensors {
                    let copy = self.copy(Code::MC004, at);
                    copy.what = Some("`.numpy()` needs the data in host memory".into());
                    copy.sure = place == Some(TensorPlace::Device);
                }
                Some(Value::of(Atom::HostArray))
            }
            "item" | "tolist" if args.is_empty() => {
                if receiver.is_view() {
                    self.emit(receiver, super::summary::Touch::HostRead, span, true);
                    return Some(Value::UNKNOWN);
                }
                if !known_host && tensors {
                    let copy = self.copy(Code::MC005, at);
                    copy.what =
                        Some(format!("`.{}()` reads a tensor back and waits for it", call.name));
                    copy.sure = place == Some(TensorPlace::Device);
                    // An array of numpy has the method too.
                    copy.weak = place.is_none() && call.name == "tolist";
                }
                Some(Value::UNKNOWN)
            }
            "tobytes" if args.is_empty() => {
                if receiver.is_view() {
                    self.emit(receiver, super::summary::Touch::HostRead, span, true);
                    self.copy(Code::MC010, at).what =
                        Some("`.tobytes()` copies a buffer's contents".into());
                    return Some(Value::of(Atom::HostArray));
                }
                self.copy(Code::MC011, at).what =
                    Some("`.tobytes()` copies the array into a byte string".into());
                let constant = receiver.only(|a| matches!(a, Atom::Constant(_)));
                Some(if constant.is_unknown() { Value::of(Atom::HostArray) } else { constant })
            }
            "to_bytes" => {
                let bytes = args.first().and_then(Value::int).and_then(|i| u64::try_from(i).ok());
                let names = call.receiver.as_ref().and_then(constant_name).into_iter().collect();
                Some(Value::of(Atom::Constant(Arc::new(Constant {
                    names,
                    bytes,
                    by_address: false,
                }))))
            }
            "copy" if args.is_empty() && (receiver.is_view() || receiver.is_host_array()) => {
                if receiver.is_view() {
                    self.emit(receiver, super::summary::Touch::HostRead, span, true);
                    self.copy(Code::MC010, at).what =
                        Some("`.copy()` copies a buffer's contents".into());
                } else {
                    self.copy(Code::MC012, at).what =
                        Some("`.copy()` copies a host array again".into());
                }
                Some(Value::of(Atom::HostArray))
            }
            "contiguous" if args.is_empty() && tensors => {
                let mut value = receiver.clone();
                if value.tensor().is_none() {
                    value.add(Atom::Tensor(TensorPlace::Unknown));
                }
                value.add(Atom::Contiguous(self.pos(at)));
                Some(value)
            }
            // A tensor's address stands for its memory.
            "data_ptr" | "untyped_storage" | "storage" if receiver.has_place() => {
                Some(receiver.clone())
            }
            // What stays the same tensor, or one in the same place.
            "data_ptr" | "untyped_storage" | "storage" | "_storage" | "detach" | "float"
            | "half" | "reshape" | "view" | "flatten" | "squeeze" | "unsqueeze" | "permute"
            | "transpose" | "t" | "clone" | "bfloat16" | "int" | "long" | "softmax" | "argmax"
            | "sum" | "mean" | "max" | "min" | "expand" | "type" | "narrow"
                if place.is_some()
                    || receiver.atoms().iter().any(|a| matches!(a, Atom::Contiguous(_))) =>
            {
                Some(receiver.only(|a| matches!(a, Atom::Tensor(_) | Atom::Contiguous(_))))
            }
            "astype" | "reshape" | "ravel" | "flatten" | "transpose" | "squeeze" | "view"
                if receiver.is_host_array() =>
            {
                Some(receiver.clone())
            }
            "astype" if receiver.is_view() => {
                self.emit(receiver, super::summary::Touch::HostRead, span, true);
                self.copy(Code::MC010, at).what =
                    Some("`.astype()` copies a buffer's contents".into());
                Some(Value::of(Atom::HostArray))
            }
            _ => None,
        }
    }

    fn sent_to_device(&mut self, call: &Call<'s>, receiver: &Value<'s>, at: Span) {
        if receiver.tensor() == Some(TensorPlace::Device) {
            return;
        }
        if receiver.tensor() == Some(TensorPlace::Host) {
            let from_numpy = call.receiver.as_ref().is_some_and(from_numpy);
            let copy = self.copy(if from_numpy { Code::MC006 } else { Code::MC008 }, at);
            copy.what = Some(if from_numpy {
                "a host array is copied to the device".into()
            } else {
                "a host tensor is copied to the device".into()
            });
            return;
        }
        // A module is moved once; a tensor of unknown place may already be there.
        let name = call.receiver.as_ref().and_then(Expr::last_name).unwrap_or("");
        let module = [
            "model", "net", "module", "self", "encoder", "decoder", "unet", "vae", "pipe",
            "pipeline",
        ];
        if module.iter().any(|m| name.eq_ignore_ascii_case(m))
            || name.to_ascii_lowercase().contains("model")
        {
            return;
        }
        let copy = self.copy(Code::MC008, at);
        copy.what = Some("a tensor is copied to the device if it is not there".into());
        copy.sure = false;
    }

    fn moved(&mut self, call: &Call<'s>, receiver: &Value<'s>, at: Span) -> Option<Value<'s>> {
        let keyword = call.args.iter().find(|a| a.label == Some("device"));
        let device = keyword.or_else(|| call.args.first().filter(|a| a.label.is_none()))?;
        let kept = |place| {
            let mut value = receiver.only(|a| matches!(a, Atom::Contiguous(_)));
            value.add(Atom::Tensor(place));
            Some(value)
        };
        match target(&device.value) {
            Target::Host => {
                if receiver.tensor() != Some(TensorPlace::Host) {
                    let copy = self.copy(Code::MC003, at);
                    copy.what = Some("`.to(\"cpu\")` copies a device tensor to host memory".into());
                    copy.sure = receiver.tensor() == Some(TensorPlace::Device);
                }
                kept(TensorPlace::Host)
            }
            Target::Device => {
                self.sent_to_device(call, receiver, at);
                kept(TensorPlace::Device)
            }
            Target::Unclear if keyword.is_some() || names_device(&device.value) => {
                self.sent_to_device(call, receiver, at);
                kept(TensorPlace::Unknown)
            }
            // A dtype: the same tensor in the same place.
            Target::Unclear => {
                let same = receiver.only(|a| matches!(a, Atom::Tensor(_) | Atom::Contiguous(_)));
                Some(same)
            }
        }
    }

    // ---- Rust ----

    fn rust_call(
        &mut self,
        call: &Call<'s>,
        receiver: &Value<'s>,
        args: &[Value<'s>],
        span: Span,
    ) -> Option<Value<'s>> {
        let candle = self.uses(&["candle", "candle_core", "candle_nn"]);
        let path = call.receiver.as_ref().and_then(Expr::last_name);
        let at = Span { start: call.name_span.start, end: span.end };
        match call.name.as_ref() {
            "to_vec0" | "to_scalar" if candle && args.is_empty() => {
                let copy = self.copy(Code::MC005, at);
                copy.what = Some(format!("`{}` reads a tensor back and waits for it", call.name));
                copy.sure = false;
                Some(Value::UNKNOWN)
            }
            "to_vec1" | "to_vec2" | "to_vec3" if candle && args.is_empty() => {
                let copy = self.copy(Code::MC003, at);
                copy.what = Some(format!("`{}` copies a tensor into a host vector", call.name));
                copy.sure = receiver.tensor() == Some(TensorPlace::Device);
                Some(Value::of(Atom::HostArray))
            }
            "to_device" if candle => {
                let host = call.args.first().is_some_and(|a| a.value.last_name() == Some("Cpu"));
                if host {
                    let copy = self.copy(Code::MC003, at);
                    copy.what =
                        Some("`to_device(&Device::Cpu)` copies a tensor to host memory".into());
                    copy.sure = false;
                    Some(Value::of(Atom::Tensor(TensorPlace::Host)))
                } else {
                    let copy = self.copy(Code::MC008, at);
                    copy.what = Some("a tensor is copied to the device if it is not there".into());
                    copy.sure = receiver.tensor() == Some(TensorPlace::Host);
                    Some(Value::of(Atom::Tensor(TensorPlace::Unknown)))
                }
            }
            "from_vec" | "from_slice" | "new" if candle && path == Some("Tensor") => {
                let device = call.args.last()?;
                let host = device.value.last_name() == Some("Cpu");
                if host {
                    return Some(Value::of(Atom::Tensor(TensorPlace::Host)));
                }
                let copy = self.copy(Code::MC007, at);
                copy.what = Some(format!("`Tensor::{}` copies host data to the device", call.name));
                copy.sure = false;
                Some(Value::of(Atom::Tensor(TensorPlace::Device)))
            }
            "contiguous" if candle && args.is_empty() => {
                Some(Value::of(Atom::Tensor(TensorPlace::Unknown)))
            }
            "to_vec" | "to_owned" | "into_vec" if receiver.is_view() => {
                Some(Value::of(Atom::HostArray))
            }
            _ => None,
        }
    }
}

/// Where `.to(…)` or `device=…` sends a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Host,
    Device,
    Unclear,
}

fn target(expr: &Expr<'_>) -> Target {
    match &expr.kind {
        ExprKind::Str(text) if text.starts_with("cpu") => Target::Host,
        ExprKind::Str(text)
            if text.starts_with("mps") || text.starts_with("cuda") || text.starts_with("xpu") =>
        {
            Target::Device
        }
        ExprKind::Call(call) if call.name == "device" => {
            call.args.first().map_or(Target::Unclear, |a| target(&a.value))
        }
        ExprKind::Other(parts) => parts.first().map_or(Target::Unclear, target),
        _ => Target::Unclear,
    }
}

/// `device`, `self.device`, `x.device`, `args.device`.
fn names_device(expr: &Expr<'_>) -> bool {
    match &expr.kind {
        ExprKind::Name(name) | ExprKind::Field(_, name) => {
            let lower = name.to_ascii_lowercase();
            lower.ends_with("device") || lower.ends_with("dev")
        }
        ExprKind::Call(call) => call.name.contains("device"),
        _ => false,
    }
}

/// Whether an expression ends in `torch.from_numpy(…)`, views and casts aside.
fn from_numpy(expr: &Expr<'_>) -> bool {
    match &expr.kind {
        ExprKind::Call(call) if call.name == "from_numpy" => true,
        ExprKind::Call(call) => call.receiver.as_ref().is_some_and(from_numpy),
        _ => false,
    }
}

/// `np` of `np.random.permutation(…)`.
fn outermost<'s>(call: &Call<'s>) -> Option<&'s str> {
    let mut receiver = call.receiver.as_ref()?;
    loop {
        match &receiver.kind {
            ExprKind::Name(name) => return Some(name),
            ExprKind::Field(object, _) => receiver = object,
            _ => return None,
        }
    }
}

fn dtype_size(expr: &Expr<'_>) -> Option<u64> {
    match &expr.kind {
        ExprKind::Name(name) | ExprKind::Field(_, name) | ExprKind::Str(name) => size_of(name),
        _ => None,
    }
}

/// `struct.pack("<3I", M, N, K)`: sizes by the format characters of the Python library reference.
fn struct_pack<'s>(call: &Call<'s>) -> Value<'s> {
    let names = call.args.iter().skip(1).filter_map(|a| constant_name(&a.value)).collect();
    let bytes = call.args.first().and_then(|a| match a.value.kind {
        ExprKind::Str(format) => format_size(format),
        _ => None,
    });
    Value::of(Atom::Constant(Arc::new(Constant { names, bytes, by_address: false })))
}

fn format_size(format: &str) -> Option<u64> {
    let mut total = 0u64;
    let mut count = String::new();
    for c in format.chars() {
        let size = match c {
            '<' | '>' | '=' | '!' | '@' | ' ' => continue,
            '0'..='9' => {
                count.push(c);
                continue;
            }
            'b' | 'B' | 'c' | '?' | 'x' | 's' => 1,
            'h' | 'H' | 'e' => 2,
            'i' | 'I' | 'l' | 'L' | 'f' => 4,
            'q' | 'Q' | 'd' | 'n' | 'N' | 'P' => 8,
            _ => return None,
        };
        let times = if count.is_empty() { 1 } else { count.parse().ok()? };
        count.clear();
        total += size * times;
    }
    Some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn struct_formats_have_the_sizes_of_the_library_reference() {
        assert_eq!(format_size("<3I"), Some(12));
        assert_eq!(format_size("IIf"), Some(12));
        assert_eq!(format_size("=QH"), Some(10));
        assert_eq!(format_size("z"), None);
    }
}

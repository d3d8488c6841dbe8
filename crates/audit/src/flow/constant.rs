//! Small constants: their names, and the sizes of scalar types.

use crate::ir::{Expr, ExprKind, Stmt};

/// The name of a scalar for the purpose of a constant: a variable or a field.
pub(crate) fn constant_name<'s>(expr: &Expr<'s>) -> Option<&'s str> {
    match &expr.kind {
        ExprKind::Name(name) | ExprKind::Field(_, name) => Some(name),
        ExprKind::Cast(inner, _) | ExprKind::AddressOf(inner) => constant_name(inner),
        ExprKind::Call(call) if call.args.len() == 1 => constant_name(&call.args[0].value),
        ExprKind::Other(parts) if parts.len() == 1 => constant_name(&parts[0]),
        ExprKind::Binary(_, left, right) => constant_name(left).or_else(|| constant_name(right)),
        ExprKind::OneOf(items) => items.iter().find_map(constant_name),
        ExprKind::Block(stmts, Some(value)) => {
            constant_name(value).or_else(|| match stmts.as_slice() {
                // `1 if normalize else 0` is about the flag.
                [Stmt::Expr(condition)] => constant_name(condition),
                _ => None,
            })
        }
        _ => None,
    }
}

/// The size in bytes of a scalar type of any of the languages.
pub(crate) fn size_of(ty: &str) -> Option<u64> {
    let ty = ty.trim().trim_end_matches(".self").trim();
    let ty = ty.rsplit([':', '.']).next().unwrap_or(ty);
    Some(match ty {
        "u8" | "i8" | "bool" | "char" | "uint8_t" | "int8_t" | "uint8" | "int8" | "UInt8"
        | "Int8" | "Bool" | "BOOL" | "uchar" | "c_uint8" | "c_int8" | "c_bool" | "bool_" => 1,
        "u16" | "i16" | "f16" | "bf16" | "half" | "__fp16" | "_Float16" | "short" | "ushort"
        | "uint16_t" | "int16_t" | "uint16" | "int16" | "float16" | "bfloat16" | "UInt16"
        | "Int16" | "Float16" | "c_uint16" | "c_int16" => 2,
        "u32" | "i32" | "f32" | "float" | "int" | "uint" | "uint32_t" | "int32_t" | "uint32"
        | "int32" | "float32" | "UInt32" | "Int32" | "Float" | "Float32" | "unsigned"
        | "c_uint" | "c_int" | "c_float" | "c_uint32" | "c_int32" | "uintc" | "intc" | "single"
        | "unsigned int" => 4,
        "u64" | "i64" | "f64" | "usize" | "isize" | "double" | "long" | "size_t" | "uint64_t"
        | "int64_t" | "uint64" | "int64" | "float64" | "UInt64" | "Int64" | "Double" | "Int"
        | "UInt" | "NSUInteger" | "NSInteger" | "CGFloat" | "unsigned long" | "c_uint64"
        | "c_int64" | "c_size_t" => 8,
        "simd_float2" | "vector_float2" | "float2" | "vector_uint2" | "simd_uint2" | "uint2" => 8,
        "simd_float4" | "vector_float4" | "float4" | "simd_float3" | "float3" | "vector_float3" => {
            16
        }
        "simd_float4x4" | "matrix_float4x4" | "float4x4" => 64,
        _ => return None,
    })
}

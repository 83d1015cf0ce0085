//! Kernels whose tensors have 16 bits in memory.
//!
//! A kernel computes in f32, and its text says so. Where a tensor is kept in f16 the text is rewritten: the
//! binding becomes an array of f16, what is loaded from it is widened, and what is stored there is rounded.
//! naga tells the places, so that no kernel is written twice.

use std::ops::Range;

use naga::{Block, Expression, Function, Handle, Module, Scalar, Span, Statement, TypeInner};

/// `text` with the storage variables called `names` in 16 bits and its lines where they were; or why it
/// cannot be so. `module`: what naga makes of `text`.
pub(super) fn in_halves(text: &str, module: &Module, names: &[&str]) -> Result<String, String> {
    let mut edits = Edits { text, module, names, all: vec![(0..0, "enable f16; ".to_owned())] };
    for name in names {
        let mut variables = module.global_variables.iter();
        let variable = variables.find(|(_, variable)| variable.name.as_deref() == Some(*name));
        let (handle, variable) = variable.ok_or_else(|| format!("it has no variable `{name}`"))?;
        let element = edits.element_of(variable.ty).ok_or_else(|| format!("`{name}` is no array of f32"))?;
        let declared = range(module.global_variables.get_span(handle))?;
        let (first, last) = (text[declared.clone()].find("array<"), text[declared.clone()].rfind('>'));
        let (first, last) =
            first.zip(last).ok_or_else(|| format!("`{name}` is not declared as array<..>"))?;
        edits.replace(declared.start + first..declared.start + last + 1, format!("array<{}>", half(element)));
    }
    let entries = module.entry_points.iter().map(|entry| &entry.function);
    for function in module.functions.iter().map(|(_, function)| function).chain(entries) {
        let mut updated = Vec::new();
        edits.stores(function, &function.body, &mut updated)?;
        edits.loads(function, &updated)?;
    }
    Ok(edits.applied())
}

/// Number of elements of a scalar or vector of f32.
fn width(inner: &TypeInner) -> Option<usize> {
    match inner {
        TypeInner::Scalar(Scalar::F32) => Some(1),
        TypeInner::Vector { size, scalar: Scalar::F32 } => Some(*size as usize),
        _ => None,
    }
}

fn typed(width: usize, scalar: &str) -> String {
    if width == 1 { scalar.to_owned() } else { format!("vec{width}<{scalar}>") }
}

fn half(width: usize) -> String {
    typed(width, "f16")
}

fn range(span: Span) -> Result<Range<usize>, String> {
    span.to_range().ok_or_else(|| "naga does not say where something stands".to_owned())
}

/// Places of a kernel's text, and what comes there instead.
struct Edits<'a> {
    text: &'a str,
    module: &'a Module,
    names: &'a [&'a str],
    all: Vec<(Range<usize>, String)>,
}

impl Edits<'_> {
    fn replace(&mut self, place: Range<usize>, by: String) {
        self.all.push((place, by));
    }

    /// Puts `before` and `after` around a place.
    fn wrap(&mut self, place: Range<usize>, before: String, after: &str) {
        self.replace(place.start..place.start, before);
        self.replace(place.end..place.end, after.to_owned());
    }

    /// The width of an array's elements, if they are of f32.
    fn element_of(&self, ty: Handle<naga::Type>) -> Option<usize> {
        let TypeInner::Array { base, .. } = self.module.types[ty].inner else { return None };
        width(&self.module.types[base].inner)
    }

    /// The width of what a pointer into one of the variables points to; `None` for other pointers.
    fn pointed(&self, function: &Function, pointer: Handle<Expression>) -> Option<usize> {
        let base_of = |pointer| match function.expressions[pointer] {
            Expression::Access { base, .. } | Expression::AccessIndex { base, .. } => Some(base),
            _ => None,
        };
        let variable_of = |pointer| match function.expressions[pointer] {
            Expression::GlobalVariable(variable) => {
                let variable = &self.module.global_variables[variable];
                let is_named = variable.name.as_deref().is_some_and(|name| self.names.contains(&name));
                is_named.then_some(variable)
            }
            _ => None,
        };
        let base = base_of(pointer)?;
        match variable_of(base) {
            Some(variable) => self.element_of(variable.ty),
            // One number of a vector.
            None => variable_of(base_of(base)?).map(|_| 1),
        }
    }

    /// Rounds what a block stores. `updated`: the places of `+=` and the like, which also load.
    fn stores(
        &mut self,
        function: &Function,
        block: &Block,
        updated: &mut Vec<Range<usize>>,
    ) -> Result<(), String> {
        for (statement, span) in block.span_iter() {
            match statement {
                Statement::Store { pointer, .. } => {
                    let Some(width) = self.pointed(function, *pointer) else { continue };
                    let (all, target) = (range(*span)?, range(function.expressions.get_span(*pointer))?);
                    if target.start != all.start || target.end > all.end {
                        return Err("a store through a pointer that has a name".to_owned());
                    }
                    let between = &self.text[target.end..all.end];
                    let at = between.find('=').ok_or("a store without `=`")?;
                    let value = target.end + at + 1..all.end;
                    let operator = between[..at].trim();
                    if operator.is_empty() {
                        self.wrap(value, format!(" {}(", half(width)), ")");
                        continue;
                    }
                    let (wide, old) = (typed(width, "f32"), &self.text[target.clone()]);
                    let sum = format!(" = {}({wide}({old}) {operator} (", half(width));
                    self.replace(target.end..value.start, sum);
                    self.replace(value.end..value.end, "))".to_owned());
                    updated.push(target);
                }
                Statement::Block(block) => self.stores(function, block, updated)?,
                Statement::If { accept, reject, .. } => {
                    self.stores(function, accept, updated)?;
                    self.stores(function, reject, updated)?;
                }
                Statement::Loop { body, continuing, .. } => {
                    self.stores(function, body, updated)?;
                    self.stores(function, continuing, updated)?;
                }
                Statement::Switch { cases, .. } => {
                    cases.iter().try_for_each(|case| self.stores(function, &case.body, updated))?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Widens what a function loads.
    fn loads(&mut self, function: &Function, updated: &[Range<usize>]) -> Result<(), String> {
        let mut seen = Vec::new();
        for (load, expression) in function.expressions.iter() {
            let Expression::Load { pointer } = *expression else { continue };
            let Some(width) = self.pointed(function, pointer) else { continue };
            let place = range(function.expressions.get_span(load))?;
            if updated.iter().any(|target| target.start <= place.start && place.end <= target.end) {
                let is_target = updated.contains(&place);
                is_target.then_some(()).ok_or("an index that is loaded, in a sum that is stored")?;
            } else if !seen.contains(&place) {
                seen.push(place.clone());
                self.wrap(place, format!("{}(", typed(width, "f32")), ")");
            }
        }
        Ok(())
    }

    /// The text with all changes. Where two begin at one place, the first encloses the other.
    fn applied(mut self) -> String {
        self.all.sort_by_key(|(place, _)| place.start);
        let (mut out, mut at) = (String::new(), 0);
        for (place, by) in &self.all {
            out.push_str(&self.text[at..place.start]);
            out.push_str(by);
            at = place.end;
        }
        out + &self.text[at..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn halved(text: &str, names: &[&str]) -> Result<String, String> {
        in_halves(text, &naga::front::wgsl::parse_str(text).unwrap(), names)
    }

    fn kernel(body: &str) -> String {
        format!(
            "alias T = vec4<f32>;\n@group(0) @binding(0) var<storage, read> x: array<f32>;\n\
             @group(0) @binding(1) var<storage, read_write> y: array<T>; // as x\n\
             @group(0) @binding(2) var<storage, read> n: array<u32>;\n\
             @compute @workgroup_size(64)\nfn main(@builtin(local_invocation_index) i: u32) {{\n{body}\n}}\n"
        )
    }

    #[test]
    fn loads_are_widened_and_stores_rounded() {
        let cases = [
            ("y[i] = T(x[i]);", "y[i] = vec4<f16>( T(f32(x[i])));"),
            ("y[i].x = 2;", "y[i].x = f16( 2);"),
            ("y[i] += y[0] * x[1];", "y[i] = vec4<f16>(vec4<f32>(y[i]) + ( vec4<f32>(y[0]) * f32(x[1])));"),
            ("y[u32(x[i])] = y[0].wzyx;", "y[u32(f32(x[i]))] = vec4<f16>( vec4<f32>(y[0]).wzyx);"),
            ("loop { y[i][1] = x[n[i]]; break; }", "loop { y[i][1] = f16( f32(x[n[i]])); break; }"),
        ];
        for (body, wanted) in cases {
            let got = halved(&kernel(body), &["x", "y"]).unwrap();
            assert_eq!(got.lines().nth(6).unwrap(), wanted);
            assert_eq!(got.lines().nth(2).unwrap().split("y: ").nth(1).unwrap(), "array<vec4<f16>>; // as x");
            naga::front::wgsl::parse_str(&got).unwrap();
        }
        let got = halved(&kernel("y[i] = T(x[i]);"), &["x"]).unwrap();
        assert!(got.contains("y[i] = T(f32(x[i]));") && got.contains("y: array<T>;"), "{got}");
    }

    #[test]
    fn a_pointer_with_a_name_is_refused() {
        let refused = halved(&kernel("let q = &y[i]; *q = T(x[i]);"), &["y"]).unwrap_err();
        assert!(refused.contains("pointer that has a name"), "{refused}");
    }

    #[test]
    fn what_is_not_of_f32_is_refused() {
        for (name, why) in [("n", "no array of f32"), ("z", "no variable")] {
            let refused = halved(&kernel("y[i] = T(x[n[i]]);"), &[name]).unwrap_err();
            assert!(refused.contains(why), "{refused}");
        }
    }
}

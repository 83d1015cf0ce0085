//! Kernels whose tensors have 16 bits in memory.
//!
//! A kernel computes in f32, and its text says so. Where a tensor is kept in 16 bits the text is rewritten:
//! accesses to it become calls of functions that are added, which widen what they load and round what they
//! store ([`Layout`]). naga tells the places, so that no kernel is written twice.

use std::ops::Range;

use naga::{Block, Expression, Function, Handle, Module, Scalar, Span, Statement, StorageAccess, TypeInner};

use super::layout::Layout;

/// `text` with the storage variables called `names` in 16 bits and its lines where they were; or why it
/// cannot be so. `module`: what naga makes of `text`.
pub(super) fn in_halves(
    text: &str,
    module: &Module,
    names: &[&str],
    layout: Layout,
) -> Result<String, String> {
    let mut edits = Edits { text, module, names, all: vec![(0..0, layout.directive().to_owned())] };
    let mut functions = layout.shared().to_owned();
    for name in names {
        let mut variables = module.global_variables.iter();
        let variable = variables.find(|(_, variable)| variable.name.as_deref() == Some(*name));
        let (handle, variable) = variable.ok_or_else(|| format!("it has no variable `{name}`"))?;
        let element = edits.element_of(variable.ty).ok_or_else(|| format!("`{name}` is no array of f32"))?;
        let declared = range(module.global_variables.get_span(handle))?;
        let (first, last) = (text[declared.clone()].find("array<"), text[declared.clone()].rfind('>'));
        let (first, last) =
            first.zip(last).ok_or_else(|| format!("`{name}` is not declared as array<..>"))?;
        let writes = |access: StorageAccess| access.contains(StorageAccess::STORE);
        let is_written = matches!(variable.space, naga::AddressSpace::Storage { access } if writes(access));
        let (ty, access) = layout.access(name, element, is_written)?;
        functions += &access;
        edits.replace(declared.start + first..declared.start + last + 1, format!("array<{ty}>"));
    }
    let entries = module.entry_points.iter().map(|entry| &entry.function);
    for function in module.functions.iter().map(|(_, function)| function).chain(entries) {
        let mut updated = Vec::new();
        edits.stores(function, &function.body, &mut updated)?;
        edits.loads(function, &updated)?;
    }
    Ok(edits.applied() + &functions)
}

/// Number of elements of a scalar or vector of f32.
fn width(inner: &TypeInner) -> Option<usize> {
    match inner {
        TypeInner::Scalar(Scalar::F32) => Some(1),
        TypeInner::Vector { size, scalar: Scalar::F32 } => Some(*size as usize),
        _ => None,
    }
}

fn range(span: Span) -> Result<Range<usize>, String> {
    span.to_range().ok_or_else(|| "naga does not say where something stands".to_owned())
}

/// What a pointer points to.
struct Pointed<'a> {
    /// Of the variable.
    name: &'a str,
    /// The pointer to the element that it lies in.
    element: Handle<Expression>,
}

/// Places of a kernel's text, and what comes there instead.
struct Edits<'a> {
    text: &'a str,
    module: &'a Module,
    names: &'a [&'a str],
    all: Vec<(Range<usize>, String)>,
}

impl<'a> Edits<'a> {
    fn replace(&mut self, place: Range<usize>, by: String) {
        self.all.push((place, by));
    }

    /// The width of an array's elements, if they are of f32.
    fn element_of(&self, ty: Handle<naga::Type>) -> Option<usize> {
        let TypeInner::Array { base, .. } = self.module.types[ty].inner else { return None };
        width(&self.module.types[base].inner)
    }

    /// What a pointer into one of the variables points to; `None` for other pointers.
    fn pointed(&self, function: &Function, pointer: Handle<Expression>) -> Option<Pointed<'a>> {
        let base_of = |pointer| match function.expressions[pointer] {
            Expression::Access { base, .. } | Expression::AccessIndex { base, .. } => Some(base),
            _ => None,
        };
        let element_at = |pointer| match function.expressions[base_of(pointer)?] {
            Expression::GlobalVariable(variable) => {
                let variable = &self.module.global_variables[variable];
                let name = self.names.iter().find(|name| variable.name.as_deref() == Some(**name))?;
                Some(Pointed { name, element: pointer })
            }
            _ => None,
        };
        // An element, or one number of a vector.
        element_at(pointer).or_else(|| element_at(base_of(pointer)?))
    }

    /// Calls a function in place of an access `name[index]`: its name and `(u32(index)` come to stand there.
    fn call(&mut self, name: &str, place: &Range<usize>, what: &str, end: &str) -> Result<(), String> {
        let index = place.start + name.len() + 1..place.end - 1;
        let is_access = self.text[place.clone()].starts_with(&format!("{name}["));
        if !is_access || !self.text[place.clone()].ends_with(']') {
            return Err(format!("`{}` is not `{name}[..]`", &self.text[place.clone()]));
        }
        self.replace(place.start..index.start, format!("half_{what}_{name}(u32("));
        self.replace(index.end..place.end, end.to_owned());
        Ok(())
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
                    let Some(Pointed { name, element }) = self.pointed(function, *pointer) else { continue };
                    let all = range(*span)?;
                    let target = range(function.expressions.get_span(*pointer))?;
                    if target.start != all.start || target.end > all.end {
                        return Err("a store through a pointer that has a name".to_owned());
                    }
                    let between = &self.text[target.end..all.end];
                    let at = between.find('=').ok_or("a store without `=`")?;
                    let value = target.end + at + 1..all.end;
                    let (operator, old) = (between[..at].trim(), &self.text[target.clone()]);
                    if element != *pointer {
                        return Err(format!("a store to one number of `{old}`"));
                    }
                    let (mut sum, mut end) = (String::new(), ")");
                    if !operator.is_empty() {
                        updated.push(target.clone());
                        let index = &old[old.find('[').map_or(0, |at| at + 1)..old.len() - 1];
                        sum = format!(" half_load_{name}(u32({index})) {operator} (");
                        end = "))";
                    }
                    self.call(name, &target, "store", &format!("),{sum}"))?;
                    self.replace(target.end..value.start, String::new());
                    self.replace(value.end..value.end, end.to_owned());
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
            let Some(Pointed { name, element }) = self.pointed(function, pointer) else { continue };
            let place = range(function.expressions.get_span(load))?;
            if updated.iter().any(|target| target.start <= place.start && place.end <= target.end) {
                let is_target = updated.contains(&place);
                is_target.then_some(()).ok_or("an index that is loaded, in a sum that is stored")?;
                continue;
            }
            // Of a vector all numbers are loaded, once for each access.
            let access = range(function.expressions.get_span(element))?;
            if !seen.contains(&access) {
                self.call(name, &access, "load", "))")?;
                seen.push(access);
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
    use super::Layout::{Native, Packed};
    use super::*;

    fn halved(text: &str, names: &[&str], layout: Layout) -> Result<String, String> {
        in_halves(text, &naga::front::wgsl::parse_str(text).unwrap(), names, layout)
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
    fn accesses_are_calls() {
        let cases = [
            ("y[i] = T(x[i]);", "half_store_y(u32(i), T(half_load_x(u32(i))));"),
            (
                "y[i] += y[0] * x[1];",
                "half_store_y(u32(i), half_load_y(u32(i)) + ( half_load_y(u32(0)) * half_load_x(u32(1))));",
            ),
            (
                "loop { y[u32(x[i])] = y[0].wzyx; break; }",
                "loop { half_store_y(u32(u32(half_load_x(u32(i)))), half_load_y(u32(0)).wzyx); break; }",
            ),
            (
                "y[i] = T(y[i].x + y[n[i]][i]);",
                "half_store_y(u32(i), T(half_load_y(u32(i)).x + half_load_y(u32(n[i]))[i]));",
            ),
        ];
        for (layout, x, y) in [(Native, "f16", "vec4<f16>"), (Packed, "u32", "vec2<u32>")] {
            for (body, wanted) in cases {
                let got = halved(&kernel(body), &["x", "y"], layout).unwrap();
                assert_eq!(got.lines().nth(6).unwrap().replace("  ", " "), wanted);
                let declared = [format!("x: array<{x}>;"), format!("y: array<{y}>; // as x")];
                assert!(declared.iter().all(|text| got.contains(text)), "{got}");
                naga::front::wgsl::parse_str(&got).unwrap();
            }
            let got = halved(&kernel("y[i] = T(x[i]);"), &["x"], layout).unwrap();
            assert!(got.contains("y[i] = T(half_load_x(u32(i)));") && got.contains("y: array<T>;"), "{got}");
            let refused = halved(&kernel("y[i].x = 2;"), &["y"], layout).unwrap_err();
            assert!(refused.contains("one number of `y[i].x`"), "{refused}");
        }
    }

    #[test]
    fn neighbours_in_a_word_are_stored_one_by_one() {
        let text = "@group(0) @binding(0) var<storage, read_write> z: array<f32>;\n\
                    @compute @workgroup_size(1) fn main() { z[1] -= z[0]; }\n";
        let got = halved(text, &["z"], Packed).unwrap();
        assert!(got.contains("z: array<atomic<u32>>;") && got.contains("half_store_z(u32(1), "), "{got}");
        naga::front::wgsl::parse_str(&got).unwrap();
    }

    #[test]
    fn a_pointer_with_a_name_is_refused() {
        for layout in [Native, Packed] {
            let refused = halved(&kernel("let q = &y[i]; *q = T(x[i]);"), &["y"], layout).unwrap_err();
            assert!(refused.contains("pointer that has a name"), "{refused}");
        }
    }

    #[test]
    fn what_is_not_of_f32_is_refused() {
        for (name, why) in [("n", "no array of f32"), ("z", "no variable")] {
            let refused = halved(&kernel("y[i] = T(x[n[i]]);"), &[name], Native).unwrap_err();
            assert!(refused.contains(why), "{refused}");
        }
    }
}

"""The inner loops of the engine, made for the machine it runs on: stored weights times vectors, and all between.

They are written as code of LLVM and compiled when one is first needed, which takes a fraction of a second
and leaves no files; nothing imports this room before. A loop over the numbers of a row is a loop over
vectors of 32 lanes, so that the order in which a sum is formed is fixed here: it is the same for every type
of weights, and whatever the number of threads and of rows at a time.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir

from weightkit.compiled import differences, loops, steps, tiles
from weightkit.compiled.loops import Job
from weightkit.compiled.numbers import I64, POINTER, VOID

# ── sharing a job: its parts are handed out one by one, to whoever asks ────────────────────────────────

# A desk is 64 integers: what is to hand out at 0, parts done at 8, parts in all at 9, whether to leave rather than
# wait for more at 10, then from 16 on one, two or three products with their arguments, 16 integers each, or one other
# job with as many as there is room for. What is to hand out is (the number of the job) · 2^24 + parts left. The
# arguments do not change while a part is taken, for the job does not end without it. `share` does parts until there
# was nothing to do for so many turns; `run` does a job with who else shares; `run_all` does jobs one after another,
# each written down as a desk of its own, with its parts in all at 0; one that has a single part is not shared.
DESK, LEAVE, FIRST_ARGUMENT, ARGUMENT_STEP = 64, 10, 16, 16
MOST_PRODUCTS = 3
_SHARING = """
declare i32 @{give_way}()
{declare}
define void @share(ptr %desk, i64 %patience) {{
entry:
  %done = getelementptr i64, ptr %desk, i64 8
  %all.at = getelementptr i64, ptr %desk, i64 9
  %leave.at = getelementptr i64, ptr %desk, i64 10
  %arguments = getelementptr i64, ptr %desk, i64 16
  br label %look
look:
  %turns = phi i64 [ %patience, %entry ], [ %patience, %take ], [ %patience, %do ], [ %fewer, %wait ]
  %state = load atomic i64, ptr %desk seq_cst, align 8
  %left = and i64 %state, 16777215
  %nothing = icmp eq i64 %left, 0
  br i1 %nothing, label %idle, label %take
idle:
  %leave = load atomic i64, ptr %leave.at monotonic, align 8
  %patient = icmp eq i64 %leave, 0
  %fresh = icmp sgt i64 %turns, 0
  %stay = and i1 %patient, %fresh
  br i1 %stay, label %wait, label %end
wait:
  %fewer = sub i64 %turns, 1
  {pause}
  br label %look
take:
  %next = sub i64 %state, 1
  %swap = cmpxchg ptr %desk, i64 %state, i64 %next seq_cst seq_cst
  %mine = extractvalue {{ i64, i1 }} %swap, 1
  br i1 %mine, label %mine.all, label %look
mine.all:
  %all = load i64, ptr %all.at, align 8
  %number = sub i64 %all, %left
  br label %find
find:
  %product = phi ptr [ %arguments, %mine.all ], [ %after, %skip ]
  %part = phi i64 [ %number, %mine.all ], [ %rest, %skip ]
  %step.at = getelementptr i64, ptr %product, i64 1
  %total.at = getelementptr i64, ptr %product, i64 2
  %step = load i64, ptr %step.at, align 8
  %total = load i64, ptr %total.at, align 8
  %rounded = add i64 %total, %step
  %above = sub i64 %rounded, 1
  %parts = udiv i64 %above, %step
  %here = icmp ult i64 %part, %parts
  br i1 %here, label %do, label %skip
skip:
  %rest = sub i64 %part, %parts
  %after = getelementptr i64, ptr %product, i64 16
  br label %find
do:
  %kernel = load ptr, ptr %product, align 8
  %first = mul i64 %part, %step
  %stop = add i64 %first, %step
  %last = call i64 @llvm.umin.i64(i64 %stop, i64 %total)
  call void %kernel(ptr %product, i64 %first, i64 %last)
  %before = atomicrmw add ptr %done, i64 1 seq_cst
  br label %look
end:
  ret void
}}
declare i64 @llvm.umin.i64(i64, i64)
define void @run(ptr %desk, i64 %parts) {{
entry:
  %done = getelementptr i64, ptr %desk, i64 8
  %all.at = getelementptr i64, ptr %desk, i64 9
  store i64 0, ptr %done, align 8
  store i64 %parts, ptr %all.at, align 8
  %old = load i64, ptr %desk, align 8
  %whole = or i64 %old, 16777215
  %number = add i64 %whole, 1
  %state = or i64 %number, %parts
  store atomic i64 %state, ptr %desk seq_cst, align 8
  call void @share(ptr %desk, i64 0)
  br label %look
wait:
  %more = add i64 %turns, 1
  %long = icmp ugt i64 %turns, 5000
  br i1 %long, label %give, label %spin
spin:
  {pause}
  br label %look
give:
  call i32 @{give_way}()
  br label %look
look:
  %turns = phi i64 [ 0, %entry ], [ %more, %spin ], [ %more, %give ]
  %count = load atomic i64, ptr %done seq_cst, align 8
  %all = icmp eq i64 %count, %parts
  br i1 %all, label %end, label %wait
end:
  ret void
}}
declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)
define void @run_all(ptr %desk, ptr %jobs, i64 %count) {{
entry:
  %to = getelementptr i64, ptr %desk, i64 16
  br label %look
look:
  %i = phi i64 [ 0, %entry ], [ %more, %next ]
  %any = icmp ult i64 %i, %count
  br i1 %any, label %do, label %end
do:
  %at = mul i64 %i, 64
  %job = getelementptr i64, ptr %jobs, i64 %at
  %from = getelementptr i64, ptr %job, i64 16
  call void @llvm.memcpy.p0.p0.i64(ptr %to, ptr %from, i64 384, i1 false)
  %parts = load i64, ptr %job, align 8
  %single = icmp eq i64 %parts, 1
  br i1 %single, label %alone, label %shared
alone:
  %kernel = load ptr, ptr %to, align 8
  %total.at = getelementptr i64, ptr %to, i64 2
  %total = load i64, ptr %total.at, align 8
  call void %kernel(ptr %to, i64 0, i64 %total)
  br label %next
shared:
  call void @run(ptr %desk, i64 %parts)
  br label %next
next:
  %more = add i64 %i, 1
  br label %look
end:
  ret void
}}
"""

_X86 = ("declare void @llvm.x86.sse2.pause()", "call void @llvm.x86.sse2.pause()")
_ARM = ("declare void @llvm.aarch64.hint(i32)", "call void @llvm.aarch64.hint(i32 1)")
_PAUSES = {"x86_64": _X86, "aarch64": _ARM, "arm64": _ARM}  # what a processor waits with; others just look again


# ── compiling ──────────────────────────────────────────────────────────────────────────────────────────


@functools.cache
def _machine() -> Any:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    features = llvm.get_host_cpu_features().flatten()
    return llvm.Target.from_default_triple().create_target_machine(llvm.get_host_cpu_name(), features, opt=3)


_FORMS = {**loops.FORMS, **steps.FORMS, **differences.FORMS, **tiles.FORMS}
_engines: list[Any] = []  # whose code is in use


def _compile(text: str, *names: str) -> list[int]:
    """The addresses of functions in a text of LLVM."""
    module = llvm.parse_assembly(text)
    options = llvm.create_pipeline_tuning_options(speed_level=2)
    options.loop_vectorization = options.slp_vectorization = options.loop_unrolling = False  # it is all vectors
    builder = llvm.create_pass_builder(_machine(), options)
    builder.getModulePassManager().run(module, builder)
    engine = llvm.create_mcjit_compiler(module, _machine())
    engine.finalize_object()
    _engines.append(engine)
    return [engine.get_function_address(name) for name in names]


@functools.cache
def kernel(form: str, kind: str) -> int:
    """The address of the kernel of a form for a type of weights or a function, compiled when first asked for."""
    module = ir.Module()
    function = ir.Function(module, ir.FunctionType(VOID, [POINTER, I64, I64]), form)
    b = ir.IRBuilder(function.append_basic_block())
    address, first, last = function.args
    names, write = _FORMS[form]
    write(b, kind, Job(b, b.ptrtoint(address, I64), names), first, last)
    b.ret_void()
    return _compile(str(module), form)[0]


@functools.cache
def sharing() -> tuple[Callable[[int, int], None], Callable[[int, int], None], Callable[[int, int, int], None]]:
    """The functions `run(desk, parts)`, `share(desk, patience)` and `run_all(desk, jobs, count)`.

    They hold no lock of Python.
    """
    declare, pause = _PAUSES.get(llvm.get_process_triple().partition("-")[0], ("", ""))
    give_way = "SwitchToThread" if sys.platform == "win32" else "sched_yield"
    text = _SHARING.format(give_way=give_way, declare=declare, pause=pause)
    two = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)
    three = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
    run, share, run_all = _compile(text, "run", "share", "run_all")
    return two(run), two(share), three(run_all)


@functools.cache
def direct(form: str, kind: str) -> Callable[[Any, int, int], None]:
    """The kernel itself, as a function of (arguments, first, last) that holds no lock of Python."""
    return ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)(kernel(form, kind))

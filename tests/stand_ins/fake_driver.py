"""The functions of CUDA's driver on the machine of `fake_cuda`; the first argument is that machine.

Each gives a CUresult, None for success, and has the driver's name and the types of its arguments.
"""

import ctypes
import threading

import numpy as np
from cuda.bindings import driver

from tests.stand_ins.fake_cuda import (
    CONTEXT,
    INVALID_HANDLE,
    KEPT,
    LEGACY,
    NOT_READY,
    NOT_WHILE_CAPTURING,
    OK,
    OUT_OF_MEMORY,
    UserObject,
    function,
    put,
)

# The driver, devices and contexts


@function("i")
def cuInit(self, flags): ...


@function("p")
def cuDriverGetVersion(self, version):
    put(version, 13000, ctypes.c_int)


@function("ip")
def cuGetErrorName(self, error, text):
    name = ctypes.create_string_buffer(driver.CUresult(error).name.encode())
    put(text, ctypes.addressof(KEPT.setdefault(error, name)))


@function("ip")
def cuGetErrorString(self, error, text):
    put(text, ctypes.addressof(KEPT.setdefault(-1, ctypes.create_string_buffer(b"made up"))))


@function("p")
def cuDeviceGetCount(self, count):
    put(count, 1, ctypes.c_int)


@function("pi")
def cuDeviceGet(self, device, ordinal):
    assert ordinal == 0
    put(device, 0, ctypes.c_int)


@function("pii")
def cuDeviceGetAttribute(self, value, attribute, device):
    put(value, 1, ctypes.c_int)


@function("pi")
def cuDevicePrimaryCtxRetain(self, context, device):
    assert device == 0
    put(context, CONTEXT)


@function("i")
def cuDevicePrimaryCtxRelease(self, device): ...


@function("p")
def cuCtxGetCurrent(self, context):
    put(context, self.contexts.get(threading.get_ident(), 0))


@function("p")
def cuCtxSetCurrent(self, context):
    if context:
        self.contexts[threading.get_ident()] = context
    else:
        self.contexts.pop(threading.get_ident(), None)


@function("p")
def cuCtxGetDevice(self, device):
    put(device, 0, ctypes.c_int)


@function("pp")
def cuCtxGetStreamPriorityRange(self, least, greatest):
    put(least, 0, ctypes.c_int)
    put(greatest, 0, ctypes.c_int)


@function("")
def cuCtxSynchronize(self):
    if self.hung:
        return NOT_READY
    self.finish_all()
    return None


# Memory


@function("pp")
def cuMemGetInfo(self, free, total):
    put(free, self.capacity - self.device_bytes, ctypes.c_size_t)
    put(total, self.capacity, ctypes.c_size_t)


@function("pp")
def cuMemPoolCreate(self, pool, properties):
    put(pool, self._new())


@function("pip")
def cuMemPoolSetAttribute(self, pool, attribute, value):
    assert attribute == int(driver.CUmemPool_attribute.CU_MEMPOOL_ATTR_RELEASE_THRESHOLD)
    assert ctypes.c_uint64.from_address(value).value == (1 << 64) - 1


@function("ppq")
def cuMemPoolSetAccess(self, pool, access, count): ...


@function("pq")
def cuMemPoolTrimTo(self, pool, kept): ...


@function("p")
def cuMemPoolDestroy(self, pool): ...


@function("pqpp")
def cuMemAllocFromPoolAsync(self, pointer, size, pool, stream):
    if self.stream(stream).recording is not None:
        self.problems.append("memory asked for in a capture")
        return NOT_WHILE_CAPTURING
    if self.device_bytes + size > self.capacity:
        self.finish_all()  # a real device gets on by itself, too
    if self.device_bytes + size > self.capacity:
        return OUT_OF_MEMORY
    put(pointer, self.allocate(size))
    return OK


@function("qp")
def cuMemFreeAsync(self, pointer, stream):
    self.enqueue(stream, lambda: self._free(pointer))


@function("pq")
def cuMemAllocHost(self, pointer, size):
    put(pointer, self.allocate(size, host=True))


@function("p")
def cuMemFreeHost(self, pointer):
    self._free(pointer)


@function("qbqp")
def cuMemsetD8Async(self, pointer, value, count, stream):
    self.enqueue(stream, lambda: self.view(pointer, (count,), np.uint8).fill(value))


@function("qqqp")
def cuMemcpyAsync(self, target, source, size, stream):
    def side(pointer: int) -> np.ndarray:
        # Pages that are not locked are known to no driver: those of the host are taken as they are.
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(pointer))

    known = [self._block(pointer, size) for pointer in (target, source)]

    def copy() -> None:
        for pointer, block in zip((target, source), known, strict=True):
            if block is not None:
                self.view(pointer, (size,), np.uint8)
        side(target)[:] = side(source)

    on_device = [block is not None and not block.host for block in known]
    assert any(on_device), "in no live allocation"
    ways = {(True, True): "within", (True, False): "in", (False, True): "out"}
    self.copies.append((ways[on_device[0], on_device[1]], size))
    self.enqueue(stream, copy)


@function("ippq")
def cuPointerGetAttributes(self, count, attributes, places, pointer):
    block = self._block(pointer, 1)
    values = {
        driver.CUpointer_attribute.CU_POINTER_ATTRIBUTE_MEMORY_TYPE: 1 if block.host else 2,
        driver.CUpointer_attribute.CU_POINTER_ATTRIBUTE_IS_MANAGED: 0,
        driver.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL: 0,
    }
    for index in range(count):
        attribute = ctypes.c_int.from_address(attributes + 4 * index).value
        place = ctypes.c_void_p.from_address(places + 8 * index).value
        put(place, values[driver.CUpointer_attribute(attribute)], ctypes.c_int)


# Streams and events


@function("pii")
def cuStreamCreateWithPriority(self, stream, flags, priority):
    assert flags == int(driver.CUstream_flags.CU_STREAM_NON_BLOCKING)
    put(stream, self.new_stream())


@function("p")
def cuStreamDestroy(self, stream):
    self.finish(stream)
    del self.streams[stream]


@function("p")
def cuStreamSynchronize(self, stream):
    if self.stream(stream).recording is not None:
        self.problems.append("waited for a stream in a capture")
        return NOT_WHILE_CAPTURING
    return self._wait(stream)


@function("pp")
def cuStreamGetCtx(self, stream, context):
    if self.which(stream) not in self.streams:
        return INVALID_HANDLE
    put(context, CONTEXT)
    return OK


@function("ppi")
def cuStreamWaitEvent(self, stream, event, flags):
    if event not in self.events:
        return INVALID_HANDLE
    # What the event marks now; it may be recorded again.
    source, passed = self.events[event]

    def wait() -> None:
        if source in self.streams:
            self.finish(source, passed)

    wait.milliseconds = 0
    self.enqueue(stream, wait)
    return OK


@function("pi")
def cuEventCreate(self, event, flags):
    handle = self._new()
    self.events[handle] = (LEGACY, [True, self.clock])
    put(event, handle)


@function("pp")
def cuEventRecord(self, event, stream):
    if self.which(stream) not in self.streams or event not in self.events:
        return INVALID_HANDLE
    passed = [False, 0]
    self.events[event] = (self.which(stream), passed)

    def mark() -> None:
        passed[:] = [True, self.clock]

    mark.milliseconds = 0
    self.enqueue(stream, mark)
    return OK


@function("p")
def cuEventQuery(self, event):
    if self.hung:
        return OK if self.events[event][1][0] else NOT_READY
    return cuEventSynchronize(self, event)


@function("p")
def cuEventSynchronize(self, event):
    stream, passed = self.events[event]
    if stream not in self.streams:
        return OK
    return self._wait(stream, passed)


@function("p")
def cuEventDestroy(self, event):
    del self.events[event]


@function("ppp")
def cuEventElapsedTime(self, milliseconds, start, end):
    (began, at_start), (ended, at_end) = self.events[start][1], self.events[end][1]
    assert began
    assert ended
    put(milliseconds, at_end - at_start, ctypes.c_float)


# Capture and graphs


@function("pi")
def cuStreamBeginCapture(self, stream, mode):
    found = self.stream(stream)
    assert found.recording is None
    assert mode == int(driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
    found.recording, found.graph = [], self._new()
    self.graphs[found.graph] = found.recording


@function("pp")
def cuStreamIsCapturing(self, stream, status):
    put(status, int(self.stream(stream).recording is not None), ctypes.c_int)


@function("pppp")
def cuStreamGetCaptureInfo(self, stream, status, number, graph):
    put(status, int(self.stream(stream).recording is not None), ctypes.c_int)
    put(number, stream, ctypes.c_uint64)
    put(graph, self.stream(stream).graph)


@function("pp")
def cuStreamEndCapture(self, stream, graph):
    found = self.stream(stream)
    found.recording = None
    put(graph, found.graph)


@function("pppii")
def cuUserObjectCreate(self, made, pointer, destroy, references, flags):
    handle = self._new()
    self.user_objects[handle] = UserObject(pointer, destroy, references)
    put(made, handle)


@function("ppii")
def cuGraphRetainUserObject(self, graph, handle, count, flags):
    found = self.user_objects[handle]
    if not flags & 1:  # CU_GRAPH_USER_OBJECT_MOVE
        found.references += count
    self.kept.setdefault(graph, []).extend([found] * count)


@function("ppi")
def cuGraphReleaseUserObject(self, graph, handle, count):
    found = self.user_objects[handle]
    self.kept[graph].remove(found)
    found.release(count)


@function("pi")
def cuUserObjectRelease(self, handle, count):
    self.user_objects[handle].release(count)


@function("ppp")
def cuGraphInstantiateWithParams(self, executable, graph, parameters):
    handle = self._new()
    self.graphs[handle] = self.graphs[graph]
    for found in self.kept.get(graph, []):
        found.references += 1
        self.kept.setdefault(handle, []).append(found)
    put(executable, handle)


@function("pp")
def cuGraphLaunch(self, executable, stream):
    for work in self.graphs[executable]:
        self.enqueue(stream, work)


@function("p")
def cuGraphDestroy(self, graph):
    self.graphs.pop(graph)
    for found in self.kept.pop(graph, []):
        found.release()


@function("p")
def cuGraphExecDestroy(self, executable):
    cuGraphDestroy(self, executable)

"""The memory of an NVIDIA GPU, as its driver counts it for all processes."""

import ctypes
import threading
import time


class DeviceMemory:
    """The most that was used while this was open: `with DeviceMemory() as memory: …`, then `memory.peak_bytes`."""

    def __init__(self):
        self.driver, self.device = ctypes.CDLL("libnvidia-ml.so.1"), ctypes.c_void_p()
        self.driver.nvmlInit_v2()
        self.driver.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(self.device))
        self.peak_bytes, self.is_over = 0, False

    def __enter__(self):
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def __exit__(self, *error):
        self.is_over = True
        self.thread.join()

    def watch(self):
        memory = (ctypes.c_ulonglong * 3)()  # total, free, used
        while not self.is_over:
            if self.driver.nvmlDeviceGetMemoryInfo(self.device, memory) != 0:
                raise RuntimeError("the driver does not say how much memory is used")
            self.peak_bytes = max(self.peak_bytes, memory[2])
            time.sleep(0.001)

/* A libcuda.so.1 without a GPU: its functions are those of tests/stand_ins/fake_cuda.py.

   The loader knows a library by its name, so that once this one is open, whoever opens libcuda.so.1
   in this process gets it. All of them, cuda.core first, look functions up by cuGetProcAddress.
   What they get is a function of this file, which goes on to Python while there is one: the end of
   a process finds libraries that still call. */

typedef void *(*Resolve)(const char *name);
typedef int (*Function)(long, long, long, long, long, long, long, long);

enum { kDeinitialized = 4, kNoDevice = 100, kNotSupported = 801 };

static Resolve resolve;
static Function targets[100];

/* Of Python's own interface; a handle that ends while an exception is on its way must not lose it. */
extern int PyGILState_Ensure(void);
extern void PyGILState_Release(int state);
extern void PyErr_Fetch(void **type, void **value, void **trace);
extern void PyErr_Restore(void *type, void *value, void *trace);

/* Whole numbers and pointers are passed alike, and what is not an argument is not looked at. */
static int forward(int n, long a, long b, long c, long d, long e, long f, long g, long h) {
  void *type, *value, *trace;
  int state, status;
  if (!resolve) return kDeinitialized;
  state = PyGILState_Ensure();
  PyErr_Fetch(&type, &value, &trace);
  status = targets[n](a, b, c, d, e, f, g, h);
  PyErr_Restore(type, value, trace);
  PyGILState_Release(state);
  return status;
}

#define FORWARD(n)                                                                             \
  static int forward_##n(long a, long b, long c, long d, long e, long f, long g, long h) {     \
    return forward(n, a, b, c, d, e, f, g, h);                                                 \
  }
#define TEN(do_this, n)                                                                        \
  do_this(n##0) do_this(n##1) do_this(n##2) do_this(n##3) do_this(n##4) do_this(n##5)          \
  do_this(n##6) do_this(n##7) do_this(n##8) do_this(n##9)
#define HUNDRED(do_this)                                                                       \
  TEN(do_this, ) TEN(do_this, 1) TEN(do_this, 2) TEN(do_this, 3) TEN(do_this, 4)               \
  TEN(do_this, 5) TEN(do_this, 6) TEN(do_this, 7) TEN(do_this, 8) TEN(do_this, 9)
#define NAME(n) forward_##n,

HUNDRED(FORWARD)
static const Function forwards[100] = {HUNDRED(NAME)};

/* NULL: there is no Python any more. */
void stand_in(Resolve given) { resolve = given; }

static int not_supported(void) { return kNotSupported; }

int cuGetProcAddress_v2(const char *name, void **function, int version, unsigned long long flags,
                        int *result) {
  Function found = resolve ? (Function)resolve(name) : 0;
  int slot = 0;
  (void)version, (void)flags;
  while (found && slot < 100 && targets[slot] && targets[slot] != found) ++slot;
  *function = (void *)not_supported;
  if (found && slot < 100) {
    targets[slot] = found;
    *function = (void *)forwards[slot];
  }
  if (result) *result = 0; /* CU_GET_PROC_ADDRESS_SUCCESS */
  return 0;
}

int cuGetProcAddress(const char *name, void **function, int version, unsigned long long flags) {
  return cuGetProcAddress_v2(name, function, version, flags, 0);
}

/* Those that look functions up by their own means begin with this one. */
int cuInit(unsigned flags) {
  Function found = resolve ? (Function)resolve("cuInit") : 0;
  return found ? found(flags, 0, 0, 0, 0, 0, 0, 0) : kNoDevice;
}

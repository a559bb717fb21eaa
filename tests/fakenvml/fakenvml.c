/* A libnvidia-ml.so.1 without a GPU: the ABI that nvidia-ml-py calls, driven by a text file.
 *
 * $FAKE_NVML_STATE names the file; it is read again whenever it was replaced (write beside it, then rename).
 * $FAKE_NVML_LOG, if set, gets one line per nvmlShutdown: what was not given back.
 * $FAKE_NVML_GPM_LEAST_US is the least distance of two GPM samples, 100000 if unset.
 *
 *   driver 570.86.15            the kernel module's version; another than this library's (FAKE_VERSION): error 18
 *   loaded 0                    no kernel module: error 9
 *   gpu I KEY VALUE             see the functions for the keys; `gpu I uuid …` makes the GPU
 *   mig I J KEY VALUE           the same for MIG device J of GPU I
 *   fail FUNCTION I CODE        the function answers CODE for GPU I; `*` for every function, every GPU
 *   delay FUNCTION I MS         it answers late; -1: never
 *   xid SERIAL I TYPE DATA      an event, delivered once to every event set made before its serial appeared
 *
 * Functions are left out by the linker (see build.py), -DWIDE_PROCESSES makes the process entries of early R535.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#ifndef FAKE_VERSION
#define FAKE_VERSION "570.86.15"
#endif

enum {
  SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7,
  DRIVER_NOT_LOADED = 9, TIMEOUT = 10, GPU_IS_LOST = 15, VERSION_MISMATCH = 18, ARGUMENT_VERSION = 25
};

typedef unsigned int u32;
typedef unsigned long long u64;

#define MOST_GPUS 32
#define MOST_MIGS 16
#define MOST_PAIRS 48
#define MOST_RULES 512
#define MOST_EVENTS 4096
#define MAGIC 0x4e564d4c46414b45ull
#define EVENT_SET 0x4556454e54534554ull
#define GPM_SAMPLE 0x47504d53414d504cull

typedef struct { char key[32]; char *value; } Pair;
typedef struct { int there, count; Pair pairs[MOST_PAIRS]; } Facts;
typedef struct { char function[64]; int gpu; long value; } Rule;
typedef struct { u64 serial, type, data; int gpu; } Event;
typedef struct { u64 magic; int gpu, mig; } Handle;
typedef struct { u64 magic, seen; u64 types[MOST_GPUS]; } EventSet;
typedef struct { u64 magic; int gpu, gi; u64 at_us; } Gpm;

static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;
static int initialized, loaded = 1, live_sets, live_gpm;
static char driver[64] = FAKE_VERSION;
static Facts gpus[MOST_GPUS], migs[MOST_GPUS][MOST_MIGS];
static Rule fails[MOST_RULES], delays[MOST_RULES];
static Event events[MOST_EVENTS];
static int fail_count, delay_count, event_count;
static Handle handles[MOST_GPUS][MOST_MIGS + 1];
static struct stat read_from;

static u64 now_us(void) {
  struct timespec t;
  clock_gettime(CLOCK_REALTIME, &t);
  return (u64)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

static void nap_ms(long ms) {
  struct timespec t = {ms / 1000, ms % 1000 * 1000000};
  nanosleep(&t, NULL);
}

/* --- the file ------------------------------------------------------------------------------------------- */

static void forget(Facts *facts) {
  for (int i = 0; i < facts->count; i++) free(facts->pairs[i].value);
  memset(facts, 0, sizeof *facts);
}

static void forget_all(void) {
  for (int i = 0; i < MOST_GPUS; i++) {
    forget(&gpus[i]);
    for (int j = 0; j < MOST_MIGS; j++) forget(&migs[i][j]);
  }
  fail_count = delay_count = event_count = 0;
  loaded = 1;
  strcpy(driver, FAKE_VERSION);
}

static void learn(Facts *facts, const char *key, const char *value) {
  if (facts->count == MOST_PAIRS) abort();
  Pair *pair = &facts->pairs[facts->count++];
  snprintf(pair->key, sizeof pair->key, "%s", key);
  pair->value = strdup(value);
  facts->there = 1;
}

static void rule(Rule *rules, int *count, const char *line) {
  char gpu[16];
  if (*count == MOST_RULES) abort();
  Rule *made = &rules[*count];
  if (sscanf(line, "%63s %15s %ld", made->function, gpu, &made->value) != 3) abort();
  made->gpu = gpu[0] == '*' ? -1 : atoi(gpu);
  ++*count;
}

static void read_line(char *line) {
  char key[32], value[8192] = "";
  int i, j;
  Event event;
  line[strcspn(line, "\n")] = 0;
  if (sscanf(line, "gpu %d %31s %8191[^\n]", &i, key, value) >= 2 && i < MOST_GPUS) learn(&gpus[i], key, value);
  else if (sscanf(line, "mig %d %d %31s %8191[^\n]", &i, &j, key, value) >= 3 && i < MOST_GPUS && j < MOST_MIGS)
    learn(&migs[i][j], key, value);
  else if (!strncmp(line, "fail ", 5)) rule(fails, &fail_count, line + 5);
  else if (!strncmp(line, "delay ", 6)) rule(delays, &delay_count, line + 6);
  else if (sscanf(line, "xid %llu %d %lli %llu", &event.serial, &event.gpu, (long long *)&event.type, &event.data) == 4) {
    if (event_count < MOST_EVENTS) events[event_count++] = event;
  } else if (sscanf(line, "driver %63s", driver) == 1 || sscanf(line, "loaded %d", &loaded) == 1) return;
  else if (line[0]) { fprintf(stderr, "fakenvml: what is %s?\n", line); abort(); }
}

static void look_at_file(void) {
  const char *path = getenv("FAKE_NVML_STATE");
  struct stat now;
  static char line[9000];
  if (!path || stat(path, &now)) return;
  if (now.st_ino == read_from.st_ino && now.st_mtim.tv_nsec == read_from.st_mtim.tv_nsec &&
      now.st_mtim.tv_sec == read_from.st_mtim.tv_sec && now.st_size == read_from.st_size) return;
  FILE *file = fopen(path, "r");
  if (!file) return;
  forget_all();
  while (fgets(line, sizeof line, file)) read_line(line);
  fclose(file);
  read_from = now;
}

static const char *text(Facts *facts, const char *key) {
  for (int i = 0; i < facts->count; i++)
    if (!strcmp(facts->pairs[i].key, key)) return facts->pairs[i].value;
  return NULL;
}

static double number(Facts *facts, const char *key, double otherwise) {
  const char *found = text(facts, key);
  return found ? strtod(found, NULL) : otherwise;
}

/* --- what every call goes through: the caller holds the lock when this returns SUCCESS ------------------- */

static int ruled(Rule *rules, int count, const char *function, int gpu, long *value) {
  for (int i = 0; i < count; i++)
    if ((rules[i].function[0] == '*' || !strcmp(rules[i].function, function)) &&
        (rules[i].gpu == -1 || rules[i].gpu == gpu)) {
      *value = rules[i].value;
      return 1;
    }
  return 0;
}

static int leave(int code) {
  pthread_mutex_unlock(&turn);
  return code;
}

static int enter(const char *function, int gpu) {
  long value;
  pthread_mutex_lock(&turn);
  look_at_file();
  if (ruled(delays, delay_count, function, gpu, &value)) {
    pthread_mutex_unlock(&turn);
    while (value < 0) nap_ms(1000);
    nap_ms(value);
    pthread_mutex_lock(&turn);
  }
  if (ruled(fails, fail_count, function, gpu, &value)) return leave((int)value);
  if (!loaded) return leave(DRIVER_NOT_LOADED);
  if (strcmp(driver, FAKE_VERSION)) return leave(VERSION_MISMATCH);
  if (!initialized && strncmp(function, "nvmlInit", 8)) return leave(UNINITIALIZED);
  if (gpu >= 0 && number(&gpus[gpu], "lost", 0)) return leave(GPU_IS_LOST);
  return SUCCESS;
}

static Handle *handle_of(void *device) {
  Handle *handle = device;
  return handle && handle->magic == MAGIC ? handle : NULL;
}

/* The facts behind a handle, or NULL if the device is gone; a MIG slot that was made anew answers as the new one. */
static Facts *facts_of(Handle *handle) {
  Facts *facts = handle->mig < 0 ? &gpus[handle->gpu] : &migs[handle->gpu][handle->mig];
  return facts->there ? facts : NULL;
}

#define SYSTEM() do { int e_ = enter(__func__, -2); if (e_) return e_; } while (0)
#define DEVICE() \
  Handle *handle = handle_of(device); \
  if (!handle) return INVALID_ARGUMENT; \
  do { int e_ = enter(__func__, handle->gpu); if (e_) return e_; } while (0); \
  Facts *facts = facts_of(handle); \
  if (!facts) return leave(INVALID_ARGUMENT); \
  Facts *parent = &gpus[handle->gpu]; \
  int on_mig = handle->mig >= 0, mig_mode = (int)number(parent, "mig_mode", 0); \
  (void)parent; (void)on_mig; (void)mig_mode

static int give_text(const char *value, char *into, u32 size) {
  if (!value) return NOT_SUPPORTED;
  if (strlen(value) + 1 > size) return INSUFFICIENT_SIZE;
  strcpy(into, value);
  return SUCCESS;
}

/* --- system --------------------------------------------------------------------------------------------- */

int nvmlInit_v2(void) {
  int error = enter(__func__, -2);
  if (error) return error;
  initialized++;
  return leave(SUCCESS);
}

int nvmlInitWithFlags(u32 flags) {
  (void)flags;
  int error = enter(__func__, -2);
  if (error) return error;
  initialized++;
  return leave(SUCCESS);
}

int nvmlShutdown(void) {
  SYSTEM();
  initialized--;
  const char *path = getenv("FAKE_NVML_LOG");
  FILE *log = path ? fopen(path, "a") : NULL;
  if (log) {
    fprintf(log, "shutdown initialized=%d sets=%d gpm=%d\n", initialized, live_sets, live_gpm);
    fclose(log);
  }
  return leave(SUCCESS);
}

const char *nvmlErrorString(int code) {
  static char said[32];
  snprintf(said, sizeof said, "error %d", code);
  return said;
}

int nvmlSystemGetDriverVersion(char *version, u32 size) { SYSTEM(); return leave(give_text(FAKE_VERSION, version, size)); }
int nvmlSystemGetNVMLVersion(char *version, u32 size) { SYSTEM(); return leave(give_text("13." FAKE_VERSION, version, size)); }
int nvmlSystemGetCudaDriverVersion_v2(int *version) { SYSTEM(); *version = 13000; return leave(SUCCESS); }

int nvmlDeviceGetCount_v2(u32 *count) {
  SYSTEM();
  for (*count = 0; *count < MOST_GPUS && gpus[*count].there;) ++*count;
  return leave(SUCCESS);
}

/* --- handles and identity --------------------------------------------------------------------------------- */

static void *the_handle(int gpu, int mig) {
  Handle *handle = &handles[gpu][mig + 1];
  handle->magic = MAGIC;
  handle->gpu = gpu;
  handle->mig = mig;
  return handle;
}

int nvmlDeviceGetHandleByIndex_v2(u32 index, void **device) {
  if (index >= MOST_GPUS) return INVALID_ARGUMENT;
  int error = enter(__func__, (int)index);
  if (error) return error;
  if (!gpus[index].there) return leave(INVALID_ARGUMENT);
  *device = the_handle((int)index, -1);
  return leave(SUCCESS);
}

int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) {
  SYSTEM();
  for (int i = 0; i < MOST_GPUS && gpus[i].there; i++)
    if (!strcmp(text(&gpus[i], "uuid"), uuid)) {
      *device = the_handle(i, -1);
      return leave(SUCCESS);
    }
  return leave(NOT_FOUND);
}

int nvmlDeviceGetUUID(void *device, char *uuid, u32 size) { DEVICE(); return leave(give_text(text(facts, "uuid"), uuid, size)); }
int nvmlDeviceGetName(void *device, char *name, u32 size) {
  DEVICE();
  /* "\xNN" in the file is that byte, so that names need not be UTF-8. */
  char raw[256];
  const char *from = text(facts, "name");
  size_t n = 0;
  for (; from && *from && n < sizeof raw - 1; n++)
    if (!strncmp(from, "\\x", 2)) { raw[n] = (char)strtol((char[]){from[2], from[3], 0}, NULL, 16); from += 4; }
    else raw[n] = *from++;
  raw[n] = 0;
  return leave(give_text(from ? raw : NULL, name, size));
}
int nvmlDeviceGetSerial(void *device, char *serial, u32 size) { DEVICE(); return leave(give_text(text(facts, "serial"), serial, size)); }
int nvmlDeviceGetIndex(void *device, u32 *index) { DEVICE(); *index = (u32)handle->gpu; return leave(SUCCESS); }
int nvmlDeviceGetMinorNumber(void *device, u32 *minor) { DEVICE(); *minor = (u32)number(facts, "minor", handle->gpu); return leave(SUCCESS); }

typedef struct { char old[16]; u32 domain, bus, device, id, subsystem; char bus_id[32]; } PciInfo;
int nvmlDeviceGetPciInfo_v3(void *device, PciInfo *info) {
  DEVICE();
  memset(info, 0, sizeof *info);
  info->bus = (u32)handle->gpu + 1;
  snprintf(info->bus_id, sizeof info->bus_id, "00000000:%02X:00.0", handle->gpu + 1);
  return leave(SUCCESS);
}

/* --- utilization: a ring of samples at whole multiples of the period, or the ones the file lists ---------- */

typedef struct { u32 gpu, memory; } Utilization;
int nvmlDeviceGetUtilizationRates(void *device, Utilization *rates) {
  DEVICE();
  if (on_mig || mig_mode || number(facts, "util", -1) < 0) return leave(NOT_SUPPORTED);
  rates->gpu = (u32)number(facts, "util", 0);
  rates->memory = rates->gpu / 2;
  return leave(SUCCESS);
}

typedef struct { u64 at_us; union { double d; u32 u; u64 ull; long long s; } value; } Sample;

static void put_value(Sample *sample, u32 type, double value) {
  memset(&sample->value, 0, sizeof sample->value);
  if (type == 0) sample->value.d = value;
  else if (type == 1) sample->value.u = (u32)(long long)value;
  else sample->value.ull = (u64)(long long)value;
}

/* Keys: util (percent), period_us, depth, frozen_us (no sample after it), value_type, samples ("us:value …"). */
static u32 ring(Facts *facts, u64 after_us, Sample *into, u32 most) {
  u32 type = (u32)number(facts, "value_type", 1), count = 0;
  const char *listed = text(facts, "samples");
  if (listed) {
    while (*listed) {
      char *end;
      u64 at_us = strtoull(listed, &end, 10);
      double value = strtod(end + 1, &end);
      if (at_us > after_us) {
        if (into && count < most) { into[count].at_us = at_us; put_value(&into[count], type, value); }
        count++;
      }
      for (listed = end; *listed == ' ';) listed++;
    }
    return count;
  }
  u64 period_us = (u64)number(facts, "period_us", 100000), depth = (u64)number(facts, "depth", 120);
  u64 last = now_us(), frozen_us = (u64)number(facts, "frozen_us", 0);
  if (frozen_us && frozen_us < last) last = frozen_us;
  last = last / period_us * period_us;
  u64 first = last - (depth - 1) * period_us;
  if (after_us >= first) first = (after_us / period_us + 1) * period_us;
  for (u64 at_us = first; at_us <= last; at_us += period_us, count++)
    if (into && count < most) { into[count].at_us = at_us; put_value(&into[count], type, number(facts, "util", 0)); }
  return count;
}

int nvmlDeviceGetSamples(void *device, u32 kind, u64 after_us, u32 *type, u32 *count, Sample *samples) {
  DEVICE();
  if (kind != 1 || on_mig || mig_mode || number(facts, "util", -1) < 0) return leave(NOT_SUPPORTED);
  *type = (u32)number(facts, "value_type", 1);
  u32 there = ring(facts, after_us, samples, samples ? *count : 0);
  if (!there) return leave(NOT_FOUND);
  if (samples && *count < there) there = *count;
  *count = there;
  return leave(SUCCESS);
}

/* Key: process_util, "pid:us:sm …"; "now" for the microseconds of one that goes on. */
typedef struct { u32 pid; u64 at_us; u32 sm, memory, encoder, decoder; } ProcessSample;
int nvmlDeviceGetProcessUtilization(void *device, ProcessSample *samples, u32 *count, u64 after_us) {
  DEVICE();
  if (on_mig || mig_mode) return leave(NOT_SUPPORTED);
  const char *listed = text(facts, "process_util");
  u32 found = 0;
  for (; listed && *listed; listed += strcspn(listed, " "), listed += strspn(listed, " ")) {
    ProcessSample sample = {0};
    if (sscanf(listed, "%u:now:%u", &sample.pid, &sample.sm) == 2) sample.at_us = now_us();
    else if (sscanf(listed, "%u:%llu:%u", &sample.pid, &sample.at_us, &sample.sm) != 3) abort();
    if (sample.at_us <= after_us) continue;
    if (samples && found < *count) samples[found] = sample;
    found++;
  }
  if (!found) return leave(NOT_FOUND);
  int enough = samples && *count >= found;
  *count = found;
  return leave(enough ? SUCCESS : INSUFFICIENT_SIZE);
}

/* --- processes: key processes, "pid:bytes …"; -1 bytes is the all-ones of a driver that does not know ------ */

typedef struct {
  u32 pid; u64 memory; u32 gi, ci;
#ifdef WIDE_PROCESSES
  u64 protected_memory;
#endif
} Process;

static int processes(Facts *facts, const char *key, u32 *count, Process *into) {
  const char *listed = text(facts, key);
  u32 found = 0;
  for (; listed && *listed; listed += strcspn(listed, " "), listed += strspn(listed, " ")) {
    long long pid, memory;
    if (sscanf(listed, "%lld:%lld", &pid, &memory) != 2) abort();
    if (into && found < *count) {
      memset(&into[found], 0, sizeof into[found]);
      into[found].pid = (u32)pid;
      into[found].memory = (u64)memory;
      into[found].gi = into[found].ci = 0xffffffff;
    }
    found++;
  }
  int enough = !found || (into && *count >= found);
  *count = found;
  return enough ? SUCCESS : INSUFFICIENT_SIZE;
}

int nvmlDeviceGetComputeRunningProcesses_v3(void *device, u32 *count, Process *into) { DEVICE(); return leave(processes(facts, "processes", count, into)); }
#ifndef WIDE_PROCESSES
int nvmlDeviceGetComputeRunningProcesses_v2(void *device, u32 *count, Process *into) { DEVICE(); return leave(processes(facts, "processes", count, into)); }
#endif
int nvmlDeviceGetGraphicsRunningProcesses_v3(void *device, u32 *count, Process *into) { DEVICE(); return leave(processes(facts, "graphics", count, into)); }
int nvmlDeviceGetConfComputeMemSizeInfo(void *device, void *info) { DEVICE(); (void)info; return leave(NOT_SUPPORTED); }
#ifndef WIDE_PROCESSES
int nvmlDeviceGetRunningProcessDetailList(void *device, void *list) { DEVICE(); (void)list; return leave(NOT_SUPPORTED); }
#endif

/* --- figures ---------------------------------------------------------------------------------------------- */

typedef struct { u64 total, free, used; } Memory;
typedef struct { u32 version; u64 total, reserved, free, used; } Memory2;
#define VERSION(type, n) ((u32)sizeof(type) | (n) << 24)

int nvmlDeviceGetMemoryInfo(void *device, Memory *memory) {
  DEVICE();
  memory->total = (u64)number(facts, "memory_total", 0);
  memory->used = (u64)(number(facts, "memory_used", 0) + number(facts, "memory_reserved", 0));
  memory->free = memory->total - memory->used;
  return leave(memory->total ? SUCCESS : NOT_SUPPORTED);
}

int nvmlDeviceGetMemoryInfo_v2(void *device, Memory2 *memory) {
  DEVICE();
  if (memory->version != VERSION(Memory2, 2)) return leave(ARGUMENT_VERSION);
  memory->total = (u64)number(facts, "memory_total", 0);
  memory->reserved = (u64)number(facts, "memory_reserved", 0);
  memory->used = (u64)number(facts, "memory_used", 0);
  memory->free = memory->total - memory->reserved - memory->used;
  return leave(memory->total ? SUCCESS : NOT_SUPPORTED);
}

/* A figure that the file does not name is one that this GPU does not have. */
#define FIGURE(function, type, key) \
  int function(void *device, type *value) { \
    DEVICE(); \
    if (!text(facts, key)) return leave(NOT_SUPPORTED); \
    *value = (type)number(facts, key, 0); \
    return leave(SUCCESS); \
  }
FIGURE(nvmlDeviceGetPowerUsage, u32, "power_mw")
FIGURE(nvmlDeviceGetEnforcedPowerLimit, u32, "power_limit_mw")
FIGURE(nvmlDeviceGetTotalEnergyConsumption, u64, "energy_mj")
FIGURE(nvmlDeviceGetCurrentClocksEventReasons, u64, "clocks_reasons")
FIGURE(nvmlDeviceGetCurrentClocksThrottleReasons, u64, "clocks_reasons")
FIGURE(nvmlDeviceGetPcieReplayCounter, u32, "pcie_replays")

typedef struct { u32 version, sensor; int celsius; } Temperature;
int nvmlDeviceGetTemperatureV(void *device, Temperature *temperature) {
  DEVICE();
  if (temperature->version != VERSION(Temperature, 1)) return leave(ARGUMENT_VERSION);
  if (!text(facts, "temperature")) return leave(NOT_SUPPORTED);
  temperature->celsius = (int)number(facts, "temperature", 0);
  return leave(SUCCESS);
}
int nvmlDeviceGetTemperature(void *device, u32 sensor, u32 *celsius) {
  DEVICE();
  (void)sensor;
  if (!text(facts, "temperature")) return leave(NOT_SUPPORTED);
  *celsius = (u32)number(facts, "temperature", 0);
  return leave(SUCCESS);
}

/* Keys: ecc_corrected, ecc_uncorrected (since the driver was loaded), and the same with _ever. */
int nvmlDeviceGetTotalEccErrors(void *device, u32 uncorrected, u32 ever, u64 *count) {
  DEVICE();
  char key[40];
  snprintf(key, sizeof key, "ecc_%s%s", uncorrected ? "uncorrected" : "corrected", ever ? "_ever" : "");
  if (!text(facts, key)) return leave(NOT_SUPPORTED);
  *count = (u64)number(facts, key, 0);
  return leave(SUCCESS);
}

/* Key: remapped, "correctable uncorrectable pending failure". */
int nvmlDeviceGetRemappedRows(void *device, u32 *correctable, u32 *uncorrectable, u32 *pending, u32 *failure) {
  DEVICE();
  const char *rows = text(facts, "remapped");
  if (!rows || on_mig || mig_mode) return leave(NOT_SUPPORTED);
  if (sscanf(rows, "%u %u %u %u", correctable, uncorrectable, pending, failure) != 4) abort();
  return leave(SUCCESS);
}

/* Keys: field_ID (the value), field_ID_error (its own error code). */
typedef struct { u32 id, scope; long long at, latency; u32 type; int error; union { double d; u32 u; u64 ull; } value; } Field;
int nvmlDeviceGetFieldValues(void *device, int count, Field *fields) {
  DEVICE();
  for (int i = 0; i < count; i++) {
    char key[32], error[40];
    snprintf(key, sizeof key, "field_%u", fields[i].id);
    snprintf(error, sizeof error, "field_%u_error", fields[i].id);
    fields[i].error = (int)number(facts, error, text(facts, key) ? SUCCESS : NOT_SUPPORTED);
    fields[i].type = 3;
    fields[i].value.ull = (u64)number(facts, key, 0);
  }
  return leave(SUCCESS);
}

/* --- MIG: key mig_mode on the GPU; uuid, gi, ci, memory_total, memory_used, gpm on its devices ------------- */

int nvmlDeviceGetMigMode(void *device, u32 *current, u32 *pending) {
  DEVICE();
  if (on_mig || !text(facts, "mig_mode")) return leave(NOT_SUPPORTED);
  *current = *pending = (u32)mig_mode;
  return leave(SUCCESS);
}

int nvmlDeviceGetMaxMigDeviceCount(void *device, u32 *count) {
  DEVICE();
  *count = text(facts, "mig_mode") ? 7 : 0;
  return leave(SUCCESS);
}

int nvmlDeviceGetMigDeviceHandleByIndex(void *device, u32 index, void **mig) {
  DEVICE();
  if (on_mig || index >= MOST_MIGS) return leave(INVALID_ARGUMENT);
  if (!mig_mode || !migs[handle->gpu][index].there) return leave(NOT_FOUND);
  *mig = the_handle(handle->gpu, (int)index);
  return leave(SUCCESS);
}

int nvmlDeviceGetGpuInstanceId(void *device, u32 *id) { DEVICE(); *id = (u32)number(facts, "gi", 0); return leave(on_mig ? SUCCESS : NOT_SUPPORTED); }
int nvmlDeviceGetComputeInstanceId(void *device, u32 *id) { DEVICE(); *id = (u32)number(facts, "ci", 0); return leave(on_mig ? SUCCESS : NOT_SUPPORTED); }
int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(void *device, void **parent_device) {
  DEVICE();
  *parent_device = the_handle(handle->gpu, -1);
  return leave(on_mig ? SUCCESS : INVALID_ARGUMENT);
}

/* --- GPM: key gpm_support on the GPU, gpm (busy percent) and gpm_sm on a GPU or MIG device ----------------- */

typedef struct { u32 version, supported; } GpmSupport;
int nvmlGpmQueryDeviceSupport(void *device, GpmSupport *support) {
  DEVICE();
  support->supported = (u32)number(parent, "gpm_support", 0);
  return leave(SUCCESS);
}

int nvmlGpmSampleAlloc(Gpm **sample) {
  SYSTEM();
  *sample = calloc(1, sizeof **sample);
  (*sample)->magic = GPM_SAMPLE;
  live_gpm++;
  return leave(SUCCESS);
}

int nvmlGpmSampleFree(Gpm *sample) {
  SYSTEM();
  if (!sample || sample->magic != GPM_SAMPLE) return leave(INVALID_ARGUMENT);
  sample->magic = 0;
  free(sample);
  live_gpm--;
  return leave(SUCCESS);
}

static int gpm_take(Handle *handle, int gi, Gpm *sample) {
  if (!sample || sample->magic != GPM_SAMPLE) return INVALID_ARGUMENT;
  if (!number(&gpus[handle->gpu], "gpm_support", 0)) return NOT_SUPPORTED;
  sample->gpu = handle->gpu;
  sample->gi = gi;
  sample->at_us = now_us();
  return SUCCESS;
}

int nvmlGpmSampleGet(void *device, Gpm *sample) { DEVICE(); return leave(gpm_take(handle, -1, sample)); }
int nvmlGpmMigSampleGet(void *device, u32 gi, Gpm *sample) {
  DEVICE();
  return leave(on_mig ? INVALID_ARGUMENT : gpm_take(handle, (int)gi, sample));
}

typedef struct { u32 id; int error; double value; char *names[3]; } GpmMetric;
typedef struct { u32 version, count; Gpm *from, *to; GpmMetric metrics[477]; } GpmMetrics;
int nvmlGpmMetricsGet(GpmMetrics *get) {
  Gpm *from = get->from, *to = get->to;
  if (!from || !to || from->magic != GPM_SAMPLE || to->magic != GPM_SAMPLE) return INVALID_ARGUMENT;
  int error = enter(__func__, to->gpu);
  if (error) return error;
  if (get->version != 1) return leave(ARGUMENT_VERSION);
  if (from->gpu != to->gpu || from->gi != to->gi) return leave(INVALID_ARGUMENT);
  const char *least = getenv("FAKE_NVML_GPM_LEAST_US");
  if (to->at_us < from->at_us + (least ? strtoull(least, NULL, 10) : 100000)) return leave(INVALID_ARGUMENT);
  Facts *facts = NULL;
  if (to->gi < 0) facts = &gpus[to->gpu];
  for (int j = 0; j < MOST_MIGS && !facts; j++)
    if (migs[to->gpu][j].there && (int)number(&migs[to->gpu][j], "gi", 0) == to->gi) facts = &migs[to->gpu][j];
  if (!facts) return leave(NOT_FOUND);
  for (u32 i = 0; i < get->count; i++) {
    const char *key = get->metrics[i].id == 1 ? "gpm" : get->metrics[i].id == 2 ? "gpm_sm" : "";
    get->metrics[i].error = text(facts, key) ? SUCCESS : NOT_SUPPORTED;
    get->metrics[i].value = number(facts, key, 0);
  }
  return leave(SUCCESS);
}

/* --- events ----------------------------------------------------------------------------------------------- */

int nvmlEventSetCreate(EventSet **set) {
  SYSTEM();
  *set = calloc(1, sizeof **set);
  (*set)->magic = EVENT_SET;
  for (int i = 0; i < event_count; i++)
    if (events[i].serial > (*set)->seen) (*set)->seen = events[i].serial;
  live_sets++;
  return leave(SUCCESS);
}

int nvmlEventSetFree(EventSet *set) {
  SYSTEM();
  if (!set || set->magic != EVENT_SET) return leave(INVALID_ARGUMENT);
  set->magic = 0;
  free(set);
  live_sets--;
  return leave(SUCCESS);
}

int nvmlDeviceGetSupportedEventTypes(void *device, u64 *types) {
  DEVICE();
  *types = (u64)number(facts, "event_types", 0xc00f);
  return leave(SUCCESS);
}

int nvmlDeviceRegisterEvents(void *device, u64 types, EventSet *set) {
  DEVICE();
  if (!set || set->magic != EVENT_SET) return leave(INVALID_ARGUMENT);
  if (types & ~(u64)number(facts, "event_types", 0xc00f)) return leave(NOT_SUPPORTED);
  set->types[handle->gpu] |= types;
  return leave(SUCCESS);
}

typedef struct { void *device; u64 type, data; u32 gi, ci; } EventData;
int nvmlEventSetWait_v2(EventSet *set, EventData *data, u32 timeout_ms) {
  u64 until_us = now_us() + (u64)timeout_ms * 1000;
  if (!set || set->magic != EVENT_SET) return INVALID_ARGUMENT;
  do {
    SYSTEM();
    for (int i = 0; i < event_count; i++) {
      Event *event = &events[i];
      if (event->serial <= set->seen) continue;
      set->seen = event->serial;
      if (!(set->types[event->gpu] & event->type)) continue;
      *data = (EventData){the_handle(event->gpu, -1), event->type, event->data, 0xffffffff, 0xffffffff};
      return leave(SUCCESS);
    }
    leave(SUCCESS);
    nap_ms(timeout_ms < 20 ? timeout_ms : 20);
  } while (now_us() < until_us);
  return TIMEOUT;
}

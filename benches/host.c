/* The part of a C host that the benchmarks need, so that Python's cost of a call is in no number. */
#define _POSIX_C_SOURCE 199309L
#include <time.h>

#include "metal_candle.h"

/* Where tokens go: all are counted, the first `capacity` are kept with the time at which they came. */
typedef struct {
  uint32_t *tokens;
  double *seconds;
  size_t capacity;
  size_t count;
} record;

static void keep(record *r, const mc_token_event *event) {
  if (r->count < r->capacity) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    r->tokens[r->count] = event->token;
    r->seconds[r->count] = (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
  }
  r->count++;
}

/* A callback for mc_session_generate_stream. */
int32_t keep_pushed(void *user_data, const mc_token_event *event) {
  keep(user_data, event);
  return MC_CONTINUE;
}

/* The loop of a host that pulls; `next` is mc_session_next, handed in because this file links with nothing. */
mc_status keep_pulled(__typeof__(mc_session_next) *next, mc_session *session, record *r, mc_error **err) {
  const mc_token_event *event;
  mc_status status;
  while ((status = next(session, &event, err)) == MC_OK) keep(r, event);
  return status == MC_DONE ? MC_OK : status;
}

defmodule Snakepit.SharedMemory.Error.Catalogue do
  @moduledoc false
  # Every code once: which class it is of, at which level it is logged, what it means and what is
  # to be done. `docs/errors.md` shows the same table, and a test compares them.
  #
  # Levels: what a caller asks for in the ordinary course of things and may not get is `:debug`; a
  # call that could never have succeeded is `:info`; what an operator must know of is `:warning`,
  # and damage is `:error`. What only says that the application does not run is not logged.

  alias Snakepit.SharedMemory.Error

  @enforce_keys [:code, :class, :level, :meaning, :remedy]
  defstruct @enforce_keys

  @type t :: %__MODULE__{
          code: Error.code(),
          class: Error.class(),
          level: Logger.level() | nil,
          meaning: String.t(),
          remedy: String.t()
        }

  @rows [
    {:already_exists, :allocation_failed, :debug, "The name is taken.",
     "Choose another name, or deallocate the region first."},
    {:not_found, :region_not_found, :debug, "There is no region of that name.",
     "Check the id; the region may have been deallocated, or its owner may have ended."},
    {:invalid_name, :invalid_request, :info, "A name or namespace breaks the rules for names.",
     "Use 1 to 128 of A-Z a-z 0-9 . _ -, no leading dot; namespaces have no underscore."},
    {:invalid_size, :invalid_request, :info, "A size is out of range or no multiple of the page.",
     "Ask for the size that the message names."},
    {:invalid_option, :invalid_request, :info, "An option is unknown or has a wrong value.",
     "Pass what the message expects."},
    {:invalid_handle, :invalid_request, :info,
     "A handle was changed on its way, or its region is gone or another.",
     "Pass the handle exactly as share/2 returned it, while its region is there."},
    {:version_conflict, :value_unavailable, :debug,
     "The writer overwrote the value during every attempt to copy it.",
     "Read again, allocate with more slots, or write less often."},
    {:torn, :value_unavailable, :warning,
     "The only slot holds half a value, and the writer that could complete it is dead.",
     "Start a writer: the next write makes the region readable; two slots prevent it."},
    {:empty, :value_unavailable, :debug, "Nothing has been written yet.",
     "Wait for the first write, with subscribe/2."},
    {:permission_denied, :permission_denied, :warning,
     "The operating system, or the way the region is mapped, forbids it.",
     "Run as the owner of the files, allocate with wider permissions, or map read-write."},
    {:resource_exhausted, :memory_limit_exceeded, :warning,
     "A limit of the configuration, or memory, descriptors, maps or table room are used up.",
     "Deallocate what is not needed, or raise the limit that the message names."},
    {:deadline_violation, :platform_error, :warning, "A real-time deadline was missed.",
     "Lower the load, pin the thread, or allow more time."},
    {:io, :platform_error, :error, "The operating system refused something else.",
     "See the system's own error in the message; check the directory and its file system."},
    {:segment_busy, :value_unavailable, :debug, "Another living writer has the region.",
     "Let that writer close or end first; a region has one writer."},
    {:out_of_bounds, :invalid_request, :info, "Offset and length do not fit.",
     "Keep offset + length within the value or the region's size."},
    {:corrupted, :corruption_detected, :error, "What is in shared memory contradicts itself.",
     "Do not use the region; remove it with cleanup_regions(corrupted: true) and write it anew."},
    {:truncated, :corruption_detected, :error, "Another program cut the file short.",
     "Remove the region and create it anew."},
    {:sealed, :invalid_request, :debug, "A sealed region never changes.",
     "Allocate a new region for a new value."},
    {:not_sealed, :value_unavailable, :debug, "Only sealed regions are viewed without a copy.",
     "Seal the region first, or read a copy."},
    {:schema_mismatch, :mapping_failed, :warning, "The value has the layout of another version.",
     "Run the same version of the program on both sides."},
    {:stale, :value_unavailable, :debug, "The value is older than the caller accepts.",
     "Check the writer, or read without :max_age."},
    {:timeout, :value_unavailable, :debug, "Nothing happened within the time given.",
     "Wait longer, or check that the other side is running."},
    {:closed, :region_not_found, :debug, "The region, or what was held of it, has ended.",
     "Map it again, or allocate it anew."},
    {:unsupported, :platform_error, :info,
     "This platform, version or kind of region cannot do that.",
     "See the reason in the message."},
    {:not_inherited, :mapping_failed, :debug,
     "The mapping is that of the process that forked this one.",
     "Attach to the segment in the forked process, or do without dont_fork."},
    {:not_started, :not_available, nil, "The application is not running.",
     "Start it: Application.ensure_all_started(:snakepit_shared_memory)."},
    {:disabled, :not_available, nil, "The configuration switches shared memory off.",
     "Set enabled: true under config :snakepit, :shared_memory."},
    {:invalid_argument, :invalid_request, :info, "An argument has a wrong type.",
     "Pass what the message names."},
    {:not_mapped, :mapping_failed, :debug, "The calling process does not hold the region mapped.",
     "Unmap a region once, from the process that mapped it."},
    {:not_referenced, :invalid_request, :debug, "The holder has no reference to the region left.",
     "Give a reference back once, from the process that took it."}
  ]

  @doc "All rows, in the order of the codes."
  @spec all() :: [t()]
  def all, do: Enum.map(@rows, &row/1)

  # A code that a later core brings and this table does not know.
  @unknown {:platform_error, :warning, "An error without a description here.",
            "See the message; report that the code is not described."}

  @doc "The row of a code."
  @spec fetch(Error.code()) :: t()
  def fetch(code)

  for {code, _class, _level, _meaning, _remedy} = row <- @rows do
    def fetch(unquote(code)), do: row(unquote(Macro.escape(row)))
  end

  def fetch(code) do
    {class, level, meaning, remedy} = @unknown
    row({code, class, level, meaning, remedy})
  end

  defp row({code, class, level, meaning, remedy}) do
    %__MODULE__{code: code, class: class, level: level, meaning: meaning, remedy: remedy}
  end
end

defmodule Snakepit.SharedMemory.Region do
  @moduledoc """
  A region that a process holds mapped, from `Snakepit.SharedMemory.map_region/2`.

  Reads and writes on it go straight to the mapping: no lookup, no message, no lock. It may be
  handed to other processes of this node; it ends for all of them when the process that mapped it
  unmaps it or dies.

    * `:id` - the region's id, its name in shared memory
    * `:size` - capacity in bytes
    * `:namespace`, `:dir` - where it is
    * `:access_mode` - `:read_only` or `:read_write`
    * `:mapped_by` - the process that mapped it

  The other fields belong to the library.
  """

  alias Snakepit.SharedMemory.Native

  @type t :: %__MODULE__{
          id: String.t(),
          size: pos_integer(),
          namespace: String.t(),
          dir: String.t(),
          access_mode: :read_only | :read_write,
          mapped_by: pid(),
          ref: reference(),
          reader: Native.reader(),
          writer: Native.writer() | nil
        }

  @derive {Inspect, only: [:id, :size, :access_mode, :mapped_by]}
  @enforce_keys [
    :id,
    :size,
    :namespace,
    :dir,
    :access_mode,
    :mapped_by,
    :ref,
    :reader,
    :writer
  ]
  defstruct @enforce_keys
end

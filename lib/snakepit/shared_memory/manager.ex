defmodule Snakepit.SharedMemory.Manager do
  @moduledoc """
  The regions under the names and arities of the design document.

  Each function is the one of `Snakepit.SharedMemory` that is called so, where it is documented with all
  its options; there is no process in between. Options are maps or keyword lists. Answers are
  `{:ok, _}` or `{:error, %Snakepit.SharedMemory.Error{}}`.

      iex> alias Snakepit.SharedMemory.Manager
      iex> {:ok, id} = Manager.allocate_region(4096, %{cleanup_policy: :manual})
      iex> {:ok, region} = Manager.map_region(id, %{access_mode: :read_only})
      iex> {:ok, %{reference_count: 2}} = Manager.get_region_info(region)
      iex> {:ok, ^id} = Manager.unmap_region(id)
      iex> Manager.deallocate_region(id) == {:ok, id}
      true
  """

  alias Snakepit.SharedMemory
  alias Snakepit.SharedMemory.{Permissions, Region}

  @type region_id :: SharedMemory.id()
  @type region_size :: pos_integer()
  @type permission_set :: Permissions.t()

  @type region_options :: %{
          optional(:permissions) => permission_set() | non_neg_integer(),
          optional(:timeout) => pos_integer() | nil,
          optional(:security_level) => :standard | :high | :maximum,
          optional(:access_mode) => :read_only | :read_write,
          optional(:cleanup_policy) => :automatic | :manual | :reference_counted,
          optional(atom()) => term()
        }

  @type region_info :: %{
          required(:id) => region_id(),
          required(:size) => region_size(),
          required(:created_at) => DateTime.t(),
          required(:last_accessed) => DateTime.t(),
          required(:reference_count) => non_neg_integer(),
          required(:owner_pid) => pid() | nil,
          required(:platform_handle) => term(),
          required(:metadata) => map(),
          optional(atom()) => term()
        }

  @doc "See `Snakepit.SharedMemory.allocate_region/2`."
  @spec allocate_region(region_size(), region_options() | keyword()) ::
          SharedMemory.result(region_id())
  defdelegate allocate_region(size, options \\ %{}), to: SharedMemory

  @doc "See `Snakepit.SharedMemory.map_region/2`."
  @spec map_region(SharedMemory.region(), SharedMemory.options()) ::
          SharedMemory.result(Region.t())
  defdelegate map_region(region, options \\ %{}), to: SharedMemory

  @doc "See `Snakepit.SharedMemory.unmap_region/2`."
  @spec unmap_region(SharedMemory.region()) :: SharedMemory.result(region_id())
  defdelegate unmap_region(region), to: SharedMemory

  @doc "See `Snakepit.SharedMemory.deallocate_region/2`."
  @spec deallocate_region(SharedMemory.region()) :: SharedMemory.result(region_id())
  defdelegate deallocate_region(region), to: SharedMemory

  @doc "See `Snakepit.SharedMemory.get_region_info/2`."
  @spec get_region_info(SharedMemory.region()) :: SharedMemory.result(region_info())
  defdelegate get_region_info(region), to: SharedMemory

  @doc "See `Snakepit.SharedMemory.list_regions/1`."
  @spec list_regions(SharedMemory.options()) :: SharedMemory.result([region_info()])
  defdelegate list_regions(filter \\ %{}), to: SharedMemory

  @doc "See `Snakepit.SharedMemory.cleanup_regions/1`."
  @spec cleanup_regions(SharedMemory.options()) :: SharedMemory.result(map())
  defdelegate cleanup_regions(options \\ %{}), to: SharedMemory
end
